//! The command lines of engine-backup as data.
//!
//! Invariants (engine-backup.md §1): always `--name=value`, never an empty argument (the
//! program stops reading options at one), a unique `--file` and `--log` (it has no lock
//! and overwrites), never a device (it would change its mode), no option that the version
//! lacks.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    archive::{self, Compression},
    scope::{Request, Scope},
    version::Version,
};

/// A command that cannot be given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    #[error("engine-backup {version} has no scope {scope}")]
    NoScope { version: Version, scope: Scope },
    #[error("engine-backup {version} cannot be given another place for scope {scope}")]
    NoDatabase { version: Version, scope: Scope },
    #[error("`{path}` cannot be given to engine-backup: {why}")]
    Path { path: String, why: &'static str },
    #[error("`{value}` cannot be the {what}: {why}")]
    Value { what: &'static str, value: String, why: &'static str },
    #[error("{text}")]
    Contradiction { text: &'static str },
}

/// The formats of a backup; the program's defaults when nothing is set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Format {
    /// `--small-size`: xz everywhere, plain dumps of engine and Data Warehouse.
    pub small: bool,
    /// Compressor of the archive.
    pub archive: Option<Compression>,
    /// Compressor of the member `files`.
    pub files: Option<Compression>,
    /// Compressors of databases' dumps. Without one they are as pg_dump writes them: its own
    /// format is compressed already.
    pub databases: BTreeMap<Scope, Compression>,
    /// Databases whose dump is SQL text instead of pg_dump's own format.
    pub plain: BTreeSet<Scope>,
}

impl Format {
    /// Whether a database of these will be dumped as SQL text.
    pub fn has_plain(&self) -> bool {
        self.small || !self.plain.is_empty()
    }
}

/// What comes of dumps as SQL text, for whoever asks for them (engine-backup.md §1, rule 8;
/// §4.1).
pub const PLAIN_TOLD: &str = "dumps as SQL text: `engine-backup --mode=verify` refuses them although they are whole; permissions in the databases are not in them; they are restored by one process, whatever jobs are asked for; pg_restore cannot judge them, only hvbak's own reader does";

/// Paths of one run on the manager.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    pub archive: String,
    pub log: String,
    pub tmpdir: String,
}

impl Paths {
    /// In a directory of the run's own.
    pub fn in_dir(dir: &str) -> Self {
        let at = |name: &str| format!("{dir}/{name}");
        Self { archive: at("engine.backup"), log: at("engine-backup.log"), tmpdir: at("tmp") }
    }

    pub(crate) fn options(&self) -> Result<[String; 3], CommandError> {
        for path in [&self.archive, &self.log, &self.tmpdir] {
            check_path(path)?;
        }
        if self.archive == self.log {
            return Err(CommandError::Contradiction { text: "--file and --log are the same" });
        }
        Ok([
            format!("--file={}", self.archive),
            format!("--log={}", self.log),
            format!("--tmpdir={}", self.tmpdir),
        ])
    }
}

/// The arguments of a backup.
pub fn backup(
    version: &Version,
    request: &Request,
    format: &Format,
    paths: &Paths,
) -> Result<Vec<String>, CommandError> {
    for scope in format.databases.keys().chain(&format.plain) {
        if option_prefix(*scope).is_none() {
            let text = "compressor and format of a dump are for db, dwhdb, cinderlibdb, keycloakdb and managedblockdb";
            return Err(CommandError::Contradiction { text });
        }
        if !scope.in_version(version) {
            return Err(CommandError::NoScope { version: version.clone(), scope: *scope });
        }
        if matches!(request, Request::Parts(parts) if !parts.contains(scope)) {
            let text = "a compressor or format is given for a database that is not backed up";
            return Err(CommandError::Contradiction { text });
        }
    }
    let mut args = vec!["--mode=backup".to_owned()];
    args.extend(scopes(version, request)?);
    args.extend(paths.options()?);
    // Presets first: the program lets later options win.
    if format.small {
        args.push("--small-size".into());
    }
    let compressor = |name: &str, kind: Option<Compression>| {
        kind.map(|k| match k.word() {
            "" => format!("--{name}-compressor=None"),
            word => format!("--{name}-compressor={word}"),
        })
    };
    args.extend(compressor("archive", format.archive));
    args.extend(compressor("files", format.files));
    for (scope, kind) in &format.databases {
        let prefix = option_prefix(*scope).unwrap_or_default();
        args.extend(compressor(&format!("{prefix}db"), Some(*kind)));
    }
    for scope in &format.plain {
        let (prefix, word) =
            (option_prefix(*scope).unwrap_or_default(), archive::Format::Plain.word());
        args.push(format!("--{prefix}db-dump-format={word}"));
    }
    Ok(args)
}

/// The beginning of a database's options: `--dwh-db-compressor`; `None`: it has none.
fn option_prefix(scope: Scope) -> Option<&'static str> {
    Some(match scope {
        Scope::Db => "",
        Scope::DwhDb => "dwh-",
        Scope::CinderlibDb => "cinderlib-",
        Scope::KeycloakDb => "keycloak-",
        Scope::ManagedblockDb => "managedblock-",
        Scope::Files | Scope::GrafanaDb | Scope::ReportsDb => return None,
    })
}

/// `--scope=` options; a scope that the version lacks is an error, not a silent loss.
pub fn scopes(version: &Version, request: &Request) -> Result<Vec<String>, CommandError> {
    if let Request::Parts(parts) = request {
        for scope in parts {
            if !scope.in_version(version) {
                return Err(CommandError::NoScope { version: version.clone(), scope: *scope });
            }
        }
    }
    Ok(request.names().iter().map(|name| format!("--scope={name}")).collect())
}

/// Whether the program may be given this path: it touches it, changes its mode, and puts
/// it unquoted into messages and SQL.
pub fn check_path(path: &str) -> Result<(), CommandError> {
    let no = |why| Err(CommandError::Path { path: path.chars().take(200).collect(), why });
    if !path.starts_with('/') {
        return no("it is not absolute");
    }
    if path.starts_with("/dev/") || path.starts_with("/proc/") || path.starts_with("/sys/") {
        return no("it is a device; the program would change its mode");
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@".contains(c);
    if !path.chars().all(plain) {
        return no("it holds characters that the program does not quote");
    }
    if path.split('/').any(|part| part == ".." || part.starts_with('-')) {
        return no("a part of it is `..` or begins with a dash");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(version: &str, scopes: &[&str], format: Format) -> Result<Vec<String>, CommandError> {
        let paths = Paths::in_dir("/var/lib/hvbak-manager/20261121T021454Z");
        backup(&version.parse().unwrap(), &Request::parse(scopes).unwrap(), &format, &paths)
    }

    #[test]
    fn rule_02_file_and_log_are_always_named() {
        for version in ["4.2.8.9", "4.3.11.4", "4.4.10.7", "4.5.7"] {
            let args = run(version, &["all"], Format::default()).unwrap();
            assert_eq!(
                args,
                [
                    "--mode=backup",
                    "--scope=all",
                    "--file=/var/lib/hvbak-manager/20261121T021454Z/engine.backup",
                    "--log=/var/lib/hvbak-manager/20261121T021454Z/engine-backup.log",
                    "--tmpdir=/var/lib/hvbak-manager/20261121T021454Z/tmp",
                ]
            );
        }
    }

    #[test]
    fn rule_10_devices_and_dashes_are_never_passed() {
        for bad in ["/dev/null", "/dev/stdout", "-x", "x", "/a/-x", "/a/../b", "/a b", "/a'b", ""] {
            assert!(check_path(bad).is_err(), "{bad}");
        }
    }

    fn all_options() -> Vec<String> {
        let format = Format {
            small: true,
            archive: Some(Compression::None),
            files: Some(Compression::Gzip),
            databases: [(Scope::Db, Compression::Xz)].into(),
            plain: [Scope::Db].into(),
        };
        run("4.5.7", &["files", "db", "db"], format).unwrap()
    }

    #[test]
    fn rule_11_no_argument_is_empty() {
        let args = all_options();
        assert!(args.iter().all(|a| a.split_once('=').is_none_or(|(_, v)| !v.is_empty())));
        // The program's own word for no compressor, not an empty value.
        assert!(args.contains(&"--archive-compressor=None".to_owned()));
    }

    #[test]
    fn rule_12_options_are_name_equals_value() {
        let args = all_options();
        let bare = ["--small-size"];
        let is_option =
            |a: &String| a.starts_with("--") && (bare.contains(&a.as_str()) || a.contains('='));
        assert!(args.iter().all(is_option), "{args:?}");
        let scopes: Vec<_> = args.iter().filter(|a| a.starts_with("--scope")).collect();
        assert_eq!(scopes, ["--scope=files", "--scope=db"]);
        // Behind the preset, or it would win.
        let at = |x: &str| args.iter().position(|a| a.starts_with(x)).unwrap();
        assert!(at("--small-size") < at("--files-compressor"));
    }

    #[test]
    fn each_database_has_its_own_compressor_and_format() {
        let format = Format {
            databases: [(Scope::Db, Compression::None), (Scope::DwhDb, Compression::Xz)].into(),
            plain: [Scope::DwhDb, Scope::KeycloakDb].into(),
            ..Format::default()
        };
        let args = run("4.5.7", &["all"], format.clone()).unwrap();
        assert_eq!(
            args[5..],
            [
                "--db-compressor=None",
                "--dwh-db-compressor=xz",
                "--dwh-db-dump-format=plain",
                "--keycloak-db-dump-format=plain",
            ]
        );
        assert!(format.has_plain() && !Format::default().has_plain());
        let refused = |version, scopes: &[&str], format| run(version, scopes, format).is_err();
        assert!(refused("4.4.10.7", &["all"], format.clone()), "it has no Keycloak");
        assert!(refused("4.5.7", &["db"], format), "nothing of them is backed up");
        for scope in [Scope::Files, Scope::GrafanaDb, Scope::ReportsDb] {
            let format = Format { plain: [scope].into(), ..Format::default() };
            assert!(refused("4.2.8.9", &["all"], format), "{scope}");
        }
    }

    #[test]
    fn a_scope_that_the_version_lacks_is_refused() {
        for (version, scope, there) in [
            ("4.5.7", "reportsdb", false),
            ("4.5.7", "managedblockdb", false),
            ("4.5.8", "managedblockdb", true),
            ("4.5.8", "cinderlibdb", false),
            ("4.4.10.7", "keycloakdb", false),
            ("4.4.2.6", "grafanadb", false),
            ("4.2.8.9", "reportsdb", true),
        ] {
            let run = run(version, &[scope], Format::default());
            assert_eq!(run.is_ok(), there, "{version} {scope}");
        }
    }
}
