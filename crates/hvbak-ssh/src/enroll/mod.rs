//! Enrolment: a key pair of our own, a restricted line on each host, sudo for users that
//! are not root; and the way back.
//!
//! Everything runs as constant POSIX shell text with values as quoted parameters or on
//! standard input. Every step may be repeated, and replaces files atomically.

mod authorized;
mod key;
mod sudoers;

use bytes::Bytes;

pub use authorized::{Change, Grant, Revoke, install, revoke};
pub use key::{KeyKind, generate_key, public_key};
pub use sudoers::{SudoScope, install_sudoers, remove_sudoers};

use crate::{
    error::{Error, Result},
    probe::HostInfo,
    target::Target,
    transport::{Session, Transport},
};

/// Logs in to `target` with its own identity and runs a command: the proof that an
/// enrolment works.
///
/// # Errors
/// Whatever stands in the way, most often [`Error::AuthRefused`].
pub async fn prove(transport: &dyn Transport, target: &Target) -> Result<()> {
    let session = transport.connect(target).await?;
    let result = session.exec("exec true", Bytes::new()).await;
    session.close().await;
    result?.check("run a command").map(drop)
}

/// Replaces a key: installs the new one, proves it by logging in to `target` (whose
/// identity must be the new key), and only then removes the old one.
///
/// # Errors
/// [`Error::RotateProof`] when the new key does not open the host; it is removed again
/// and the old one stays.
pub async fn rotate(
    transport: &dyn Transport,
    session: &dyn Session,
    info: &HostInfo,
    target: &Target,
    new: &Grant,
    old: &Revoke,
) -> Result<()> {
    let user = Some(target.user.as_str());
    let change = install(session, info, user, new).await?;
    if let Err(cause) = prove(transport, target).await {
        if change == Change::Installed {
            revoke(session, info, user, &Revoke::Key(new.key.clone())).await?;
        }
        return Err(Error::RotateProof { host: session.host().to_owned(), cause: Box::new(cause) });
    }
    revoke(session, info, user, old).await.map(drop)
}
