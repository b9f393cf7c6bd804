//! Versions: what both sides speak and how a worker names itself on the command line.

use crate::{Choice, Hello, WireError};

/// First bytes of a worker's output. The high bit, CR LF, Ctrl-Z and LF betray a
/// channel that translates text, as in PNG's signature; no greeting starts with them.
pub const MAGIC: [u8; 8] = [0x89, b'H', b'V', b'W', 0x0d, 0x0a, 0x1a, 0x0a];

/// Protocol versions this build speaks, best first.
pub const PROTOCOLS: &[u16] = &[1];

/// Optional abilities of this build's worker, named in its hello. A coordinator uses one
/// only when it is named there.
pub const FEATURES: &[&str] =
    &["file", "lvm", "qcow2", "raw", "zstd", "odirect", "slice", "tune", "cancel", "pieces"];

/// Name of this build: the version of the package.
pub const fn build_id() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// The line that `hvbak-worker --version` prints: `hvbak-worker 0.1.0 protocols 1`.
pub fn version_line() -> String {
    let protocols: Vec<_> = PROTOCOLS.iter().map(u16::to_string).collect();
    format!("hvbak-worker {} protocols {}", build_id(), protocols.join(","))
}

/// A worker as its version line describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerVersion {
    /// Build id.
    pub build: String,
    /// Protocol versions it speaks.
    pub protocols: Vec<u16>,
}

impl WorkerVersion {
    /// Whether a session with it can succeed.
    pub fn is_usable(&self) -> bool {
        self.protocols.iter().any(|p| PROTOCOLS.contains(p))
    }
}

/// Reads the line of [`version_line`]; `None` when it is something else.
pub fn parse_version_line(line: &str) -> Option<WorkerVersion> {
    let mut words = line.trim().split(' ');
    if words.next()? != "hvbak-worker" {
        return None;
    }
    let build = words.next()?.to_owned();
    if words.next()? != "protocols" {
        return None;
    }
    let protocols = words.next()?.split(',').map(str::parse).collect::<Result<_, _>>().ok()?;
    (words.next().is_none() && build.len() <= 64).then_some(WorkerVersion { build, protocols })
}

/// The coordinator's answer to a hello: the best common version, or the refusal that it
/// sends as `Choice::refuse` before it hangs up.
///
/// # Errors
/// [`WireError::Version`] when there is no common version.
pub fn choose(hello: &Hello) -> Result<Choice, WireError> {
    let best = PROTOCOLS.iter().find(|p| hello.protocols.contains(p));
    best.map(|&version| Choice { version: Some(version), refuse: None }).ok_or_else(|| {
        WireError::Version {
            build: hello.build.chars().filter(|c| !c.is_control()).take(64).collect(),
            theirs: hello.protocols.iter().copied().take(16).collect(),
            ours: PROTOCOLS.to_vec(),
        }
    })
}
