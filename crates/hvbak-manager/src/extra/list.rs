//! The list of extra files, and the file that holds it on the manager: its text, and what
//! may stand in it.

use std::collections::BTreeSet;

use super::ExtraError;

/// What engine-backup takes along by itself, in any of its versions.
pub const ROOTS: &[&str] = &[
    "/etc/dnf/plugins/versionlock.list",
    "/etc/firewalld/services/ovirt-http.xml",
    "/etc/firewalld/services/ovirt-https.xml",
    "/etc/firewalld/services/ovirt-postgres.xml",
    "/etc/firewalld/services/ovirt-provider-ovn.xml",
    "/etc/firewalld/services/ovn-central-firewall-service.xml",
    "/etc/grafana",
    "/etc/httpd/conf.d/internalsso-openidc.conf",
    "/etc/httpd/conf.d/ovirt-engine-grafana-proxy.conf",
    "/etc/httpd/conf.d/ovirt-engine-root-redirect.conf",
    "/etc/httpd/conf.d/ovirt-sso.conf",
    "/etc/httpd/conf.d/ssl.conf",
    "/etc/httpd/conf.d/z-ovirt-engine-keycloak-proxy.conf",
    "/etc/httpd/conf.d/z-ovirt-engine-proxy.conf",
    "/etc/httpd/http.keytab",
    "/etc/ovirt-engine",
    "/etc/ovirt-engine-dwh",
    "/etc/ovirt-engine-reports",
    "/etc/ovirt-engine-setup.conf.d",
    "/etc/ovirt-provider-ovn/conf.d",
    "/etc/ovirt-provider-ovn/logger.conf",
    "/etc/ovirt-vmconsole",
    "/etc/pki/ovirt-engine",
    "/etc/pki/ovirt-vmconsole",
    "/etc/yum/pluginconf.d/versionlock.list",
    "/var/lib/grafana",
    "/var/lib/openvswitch",
    "/var/lib/ovirt-engine",
    "/var/lib/ovirt-engine-reports",
];

/// What never ends, or changes while tar reads it, which fails the whole backup.
const LIVE: &[&str] = &[
    "/dev",
    "/proc",
    "/run",
    "/sys",
    "/tmp",
    "/var/lib/ovirt-engine-backup",
    "/var/lib/pgsql",
    "/var/log",
    "/var/run",
    "/var/tmp",
];

/// The first line begins with it.
const MARK: &str = "# hvbak-paths 1";
/// Its own directory: a restored manager has the list again.
const SELF: &str = "/etc/ovirt-engine-backup";
/// Bytes of a path.
const PATH_MAX: usize = 1000;

/// The list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExtraPaths(BTreeSet<String>);

impl ExtraPaths {
    /// Reads the file's text.
    ///
    /// # Errors
    /// [`ExtraError::Foreign`] when it is not what [`ExtraPaths::text`] writes.
    pub fn parse(text: &str) -> Result<Self, ExtraError> {
        if !text.starts_with(MARK) {
            return Err(ExtraError::Foreign { why: "its first line lacks hvbak's mark" });
        }
        let quoted = |line: &str| Some(line.strip_prefix("  '")?.strip_suffix("' \\")?.to_owned());
        let all: BTreeSet<String> = text.lines().filter_map(quoted).collect();
        let list = Self(all.into_iter().filter(|path| path != SELF).collect());
        if list.text().as_deref() == Some(text) {
            return Ok(list);
        }
        Err(ExtraError::Foreign { why: "it bears hvbak's mark and was changed by hand" })
    }

    /// The file's text; `None`: there should be no file.
    pub fn text(&self) -> Option<String> {
        if self.0.is_empty() {
            return None;
        }
        let mut text = format!(
            "{MARK}: written by `hvbak manager-paths`; do not edit.\n\
             # engine-backup reads this as shell and backs these up with its own files.\n\
             for hvbak_path in \\\n"
        );
        for path in std::iter::once(SELF).chain(self.0.iter().map(String::as_str)) {
            text.push_str("  '");
            text.push_str(path);
            text.push_str("' \\\n");
        }
        // Read twice, it adds nothing twice.
        text.push_str(
            "; do\n  case \"\n${BACKUP_PATHS}\n\" in\n    *\"\n${hvbak_path}\n\"*) ;;\n    \
             *) BACKUP_PATHS=\"${BACKUP_PATHS}\n${hvbak_path}\" ;;\n  esac\ndone\nunset hvbak_path\n",
        );
        Some(text)
    }

    /// Adds a path that [`check_path`] has passed; whether it is new.
    pub fn add(&mut self, path: String) -> bool {
        path != SELF && self.0.insert(path)
    }

    /// Takes a path out; whether it was there.
    pub fn remove(&mut self, path: &str) -> bool {
        self.0.remove(path)
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

/// Whether `path` lies in `root` or is it.
fn is_in(path: &str, root: &str) -> bool {
    path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether engine-backup takes this along by itself.
pub fn is_standard(path: &str) -> bool {
    ROOTS.iter().any(|root| is_in(path, root))
}

/// The path as it may stand in the list, without a final `/`. `work_dir` is hvbak's own
/// directory on the manager, which holds the archive while it is made.
///
/// # Errors
/// [`ExtraError::Path`] with the reason.
pub fn check_path(path: &str, work_dir: &str) -> Result<String, ExtraError> {
    let no = |why| Err(ExtraError::Path { path: path.escape_debug().take(200).collect(), why });
    if !path.starts_with('/') {
        return no("it is not absolute");
    }
    if path.len() > PATH_MAX {
        return no("it is too long");
    }
    // A backslash is an escape to tar's --files-from; the rest is for whoever reads the
    // list once with less care than it is written with.
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@,=~%# ".contains(c);
    if !path.chars().all(plain) {
        return no("it holds characters that a shell or tar could take for something else");
    }
    let short = path.trim_end_matches('/');
    if short.is_empty() {
        return no("it is everything");
    }
    let parts: Vec<_> = short.split('/').skip(1).collect();
    if parts.iter().any(|part| part.is_empty() || *part == "." || *part == "..") {
        return no("a part of it is empty, `.` or `..`");
    }
    // The first slash is taken away before tar reads the name: `/-x` would be an option.
    if parts.iter().any(|part| part.starts_with('-')) {
        return no("a part of it begins with a dash");
    }
    // `read` drops spaces at the ends of a line.
    if parts.iter().any(|part| part.starts_with(' ') || part.ends_with(' ')) {
        return no("a part of it begins or ends with a space");
    }
    let own = work_dir.trim_end_matches('/');
    for live in LIVE.iter().copied().chain([own]).filter(|live| !live.is_empty()) {
        if is_in(short, live) || is_in(live, short) {
            return no(
                "it is or holds what changes while it is read, on which the whole backup fails",
            );
        }
    }
    Ok(short.to_owned())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const WORK: &str = "/var/lib/hvbak-manager";

    fn list(paths: &[&str]) -> ExtraPaths {
        let mut list = ExtraPaths::default();
        for path in paths {
            assert!(list.add(check_path(path, WORK).unwrap()), "{path}");
        }
        list
    }

    /// `BACKUP_PATHS` after the file was read by a shell as often as `times`.
    fn sourced(shell: &str, text: &str, times: usize) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("50-hvbak-paths.sh");
        std::fs::write(&file, text).unwrap();
        let mut script = "BACKUP_PATHS='/etc/ovirt-engine\n/etc/hosts-not'\n".to_owned();
        for _ in 0..times {
            script.push_str(". \"$1\" || exit 9\n");
        }
        script.push_str("echo \"${BACKUP_PATHS}\"; echo \"${hvbak_path-unset}\"");
        let done = Command::new(shell).args(["-euc", &script, "x"]).arg(&file).output().unwrap();
        assert!(done.status.success() && done.stderr.is_empty(), "{shell}: {done:?}");
        String::from_utf8(done.stdout).unwrap().lines().map(ToOwned::to_owned).collect()
    }

    #[test]
    fn shells_read_the_list_as_it_was_written_and_once() {
        let paths = ["/etc/hosts", "/srv/a b", "/root/.ssh/", "/x~1,=%#+@:y"];
        let text = list(&paths).text().unwrap();
        for shell in ["bash", "sh"] {
            for times in [1, 2] {
                let expected = [
                    "/etc/ovirt-engine",
                    "/etc/hosts-not",
                    "/etc/ovirt-engine-backup",
                    "/etc/hosts",
                    "/root/.ssh",
                    "/srv/a b",
                    "/x~1,=%#+@:y",
                    "unset",
                ];
                assert_eq!(sourced(shell, &text, times), expected, "{shell} {times}");
            }
        }
    }

    #[test]
    fn the_list_is_read_back_and_nothing_else_is_taken_for_it() {
        let two = list(&["/etc/hosts", "/srv/a b"]);
        let text = two.text().unwrap();
        assert_eq!(ExtraPaths::parse(&text).unwrap(), two);
        assert_eq!(ExtraPaths::default().text(), None);
        let foreign = [
            String::new(),
            "BACKUP_PATHS=x\n".into(),
            format!("{text}\n"),
            format!("{text}rm -rf /\n"),
            text.replace("  '/srv/a b' \\\n", "  '/srv/a b' \\\n  '$(id)' x \\\n"),
            text[..text.len() - 3].to_owned(),
        ];
        for text in foreign {
            assert!(matches!(ExtraPaths::parse(&text), Err(ExtraError::Foreign { .. })), "{text}");
        }
    }

    #[test]
    fn what_is_there_is_not_added_again_and_what_is_not_there_not_removed() {
        let mut one = list(&["/etc/hosts"]);
        assert!(!one.add("/etc/hosts".into()) && !one.add(SELF.into()));
        assert!(!one.remove("/etc/host") && one.remove("/etc/hosts"));
        assert_eq!(one.text(), None);
    }

    #[test]
    fn hostile_and_endless_paths_are_refused() {
        for bad in [
            "",
            "etc/hosts",
            "/",
            "//",
            "/etc//hosts",
            "/etc/../root",
            "/etc/.",
            "/a\nb",
            "/a'b",
            "/a\"b",
            "/a\\b",
            "/a$(id)",
            "/a`id`",
            "/a;b",
            "/a*",
            "/a\0",
            "/ü",
            "/--checkpoint-action=exec=sh",
            "/a/-x",
            "/a ",
            "/a/ b",
            "/ ",
            "/proc",
            "/dev/sda",
            "/var",
            "/var/lib",
            "/var/lib/pgsql/data",
            "/var/lib/hvbak-manager",
            "/var/lib/hvbak-manager/x",
            "/run/x",
        ] {
            assert!(check_path(bad, WORK).is_err(), "{bad:?}");
        }
        assert!(check_path(&format!("/{}", "x".repeat(1000)), WORK).is_err());
        assert!(check_path("/var/lib/hvbak-managers", WORK).is_ok());
        assert_eq!(check_path("/etc/chrony.d//", WORK).unwrap(), "/etc/chrony.d");
        assert!(is_standard("/etc/grafana/grafana.ini") && !is_standard("/etc/grafanas"));
    }
}
