//! What is run on hosts of a self-hosted engine and on the manager's machine around its long
//! sequences: constant POSIX shell texts.
//!
//! `$HVBAK_HOST_ROOT` is the host's root in labs. Values come as parameters, never within the
//! text. Each may be run again: what is done already is not an error.

/// Puts the tools of a lab's host first, and stops when something is wrong with it.
macro_rules! on_host {
    ($body:literal) => {
        concat!(
            "R=${HVBAK_HOST_ROOT:-}\n[ -n \"$R\" ] && PATH=$R/usr/sbin:$R/usr/bin:$PATH\n",
            $body
        )
    };
}
pub(super) use on_host;

/// Stops the engine and keeps it from starting with its machine.
pub const STOP_ENGINE: &str = on_host!("exec systemctl disable --now ovirt-engine\n");

/// Whether the engine's service is at rest: `active=` and `enabled=`, as systemctl says.
pub const ENGINE: &str = on_host!(
    r#"echo "active=$(systemctl is-active ovirt-engine 2>/dev/null | head -n 1)"
echo "enabled=$(systemctl is-enabled ovirt-engine 2>/dev/null | head -n 1)"
"#
);

/// Takes a file from standard input. `$1` where it goes, `$2` its SHA-256. A link or a
/// directory of that name is refused (exit 64), other content, too (exit 65).
pub const RECEIVE: &str = on_host!(
    r#"umask 077
to=$R$1
[ ! -L "$to" ] && [ ! -d "$to" ] || exit 64
rm -f -- "$to.new" || exit 74
cat >"$to.new" || { rm -f -- "$to.new"; exit 74; }
[ "$(sha256sum <"$to.new" | cut -c 1-64)" = "$2" ] || { rm -f -- "$to.new"; exit 65; }
chmod 600 "$to.new" && mv -f -- "$to.new" "$to" || exit 74
sync "$to" 2>/dev/null || sync
"#
);

/// What lies under a name. `$1` the name: `sum=`, `mode=`; nothing when there is no such file.
pub const LIES: &str = on_host!(
    r#"at=$R$1
[ -f "$at" ] && [ ! -L "$at" ] || exit 0
echo "mode=$(stat -c %a "$at")"
echo "sum=$(sha256sum <"$at" | cut -c 1-64)"
"#
);

/// Whether a line stands in a file that root alone can read. `$1` the file, `$2` the line.
pub const HAS_LINE: &str = on_host!(
    r#"at=$R$1
[ -f "$at" ] && [ ! -L "$at" ] && [ "$(stat -c %a "$at")" = 600 ] && grep -qxF -e "$2" "$at" && echo there=yes
exit 0
"#
);

/// Closes a file with a line to all but root, and changes nothing else of it. `$1` the file,
/// `$2` the line. `kept=yes` when it is such a file; links are not followed.
pub const PROTECT: &str = on_host!(
    r#"at=$R$1
[ ! -L "$at" ] || exit 0
[ -f "$at" ] && grep -qxF -e "$2" "$at" || exit 0
chmod 600 "$at" && echo kept=yes
"#
);

/// Removes files for good, and what a broken transfer left of them. `$@` the names.
pub const SWEEP: &str = on_host!(
    r#"for at in "$@"; do
  for one in "$R$at" "$R$at.new"; do
    [ -e "$one" ] || [ -L "$one" ] || continue
    if [ -f "$one" ] && [ ! -L "$one" ]; then shred -u -- "$one" 2>/dev/null; fi
    rm -f -- "$one" || exit 74
  done
done
"#
);

/// How far a deployment is: `running=` when a program of it is at work, `lock=` for each file
/// that it waits for, `deployed=` when it ended well.
pub const DEPLOYMENT: &str = on_host!(
    r#"pgrep -f 'hosted[-_]engine[^ ]* --deploy|[o]topi.*hosted|[a]nsible-playbook.*hosted_engine' >/dev/null 2>&1 && echo running=yes
for lock in "$R"/tmp/ansible.*_he_setup_lock; do
  [ -e "$lock" ] && echo "lock=${lock#"$R"}"
done
hosted-engine --check-deployed >/dev/null 2>&1 </dev/null && echo deployed=yes
exit 0
"#
);

/// How far a deployment is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Deployment {
    pub running: bool,
    /// It waits until these are deleted.
    pub locks: Vec<String>,
    pub deployed: bool,
}

impl Deployment {
    /// What [`DEPLOYMENT`] found.
    pub fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
            match key {
                "running" => found.running = true,
                "deployed" => found.deployed = true,
                "lock" => found.locks.push(value.chars().take(200).collect()),
                _ => {}
            }
        }
        found
    }

    /// Whether there is one, at work or over.
    pub fn is_there(&self) -> bool {
        self.running || self.deployed || !self.locks.is_empty()
    }

    /// For people.
    pub fn words(&self) -> String {
        if !self.locks.is_empty() {
            return format!(
                "the deployment has paused: mend what it names, then delete {}",
                self.locks.join(", ")
            );
        }
        match (self.running, self.deployed) {
            (true, _) => "the deployment is at work: do not start another one".into(),
            (false, true) => "the host is deployed; its agent may take ten minutes".into(),
            (false, false) => "no deployment is at work, and the host is not deployed".into(),
        }
    }
}

/// What [`ENGINE`] found: whether the engine neither runs nor will, and why not.
pub fn engine_at_rest(text: &str) -> Result<(), String> {
    let value = |key: &str| {
        let found = text.lines().filter_map(|line| line.split_once('=')).find(|(k, _)| *k == key);
        found.map(|(_, value)| value.trim().chars().take(40).collect::<String>())
    };
    let (active, enabled) = (value("active"), value("enabled"));
    match (active.as_deref(), enabled.as_deref()) {
        (Some("inactive" | "failed" | "unknown"), Some("disabled" | "masked")) => Ok(()),
        (Some("inactive" | "failed" | "unknown"), Some(enabled)) => {
            Err(format!("ovirt-engine would start with its machine (systemctl says {enabled:?})"))
        }
        (active, _) => {
            Err(format!("ovirt-engine runs (systemctl says {:?})", active.unwrap_or_default()))
        }
    }
}
