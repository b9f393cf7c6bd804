//! Through another host.

use hvbak_ssh::{Connection, Error, HostTrust};

use crate::support::{Setup, Sshd};

#[tokio::test(flavor = "multi_thread")]
async fn through_a_jump_host() {
    let (gate, inner) = (Sshd::start(), Sshd::start());
    let mut target = inner.target();
    target.name = "hv2".into();
    let mut hop = gate.target();
    hop.name = "gate".into();
    target.jump = Some(Box::new(hop.clone()));
    let connection = Connection::connect(&target).await.unwrap();
    assert_eq!(connection.exec("echo inside").await.unwrap().text(), "inside");
    let key = connection.host_key().unwrap();
    assert_eq!(key.sha256, inner.fingerprint("ed25519", "sha256"));
    // A stream of some size.
    let mut process = connection.spawn("head -c 50000000 /dev/zero").await.unwrap();
    let mut total = 0;
    while let Some(data) = process.stdout.recv().await.unwrap() {
        total += data.len();
    }
    assert_eq!(total, 50_000_000);
    connection.close().await;

    // Each of the two is judged by its own record.
    let mut wrong = target.clone();
    wrong.trust = hop.trust.clone();
    assert!(matches!(Connection::connect(&wrong).await, Err(Error::HostKeyMismatch { .. })));
    let mut wrong = target.clone();
    wrong.jump.as_mut().unwrap().trust = HostTrust::Unknown;
    let error = Connection::connect(&wrong).await.unwrap_err();
    assert!(matches!(error, Error::Jump { .. }) && error.is_host_key(), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jump_host_that_does_not_forward() {
    let gate = Sshd::with(Setup { config: "AllowTcpForwarding no".into(), ..Setup::default() });
    let inner = Sshd::start();
    let mut target = inner.target();
    target.jump = Some(Box::new(gate.target()));
    let error = Connection::connect(&target).await.unwrap_err();
    assert!(matches!(error, Error::Forward { .. }) && error.hint().is_some(), "{error:?}");
}
