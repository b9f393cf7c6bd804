//! pg_restore as a second judge of dumps: PostgreSQL's own reader, where it is installed.
//!
//! Dumps go to it through a pipe, one after the other, after hvbak's own reader found them
//! whole; it writes SQL to `/dev/null`, so it unpacks every table. It connects to nothing,
//! knows nothing of the environment, and its memory, time and files are limited: a dump is
//! foreign. What it cannot judge is said, never passed over.

use std::{
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use hvbak_manager::{Scope, archive};
use serde::Serialize;

use crate::error::{Result, RunError};

/// Bytes of what it says.
const SAID_MAX: u64 = 16 << 10;
/// KiB of memory and seconds of processor time for one dump; files of its own: none.
const LIMITED: &str = r#"ulimit -v 4194304; ulimit -t 7200; ulimit -f 0; exec "$0" "$@""#;

/// What pg_restore says of a dump.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "pg_restore", content = "why", rename_all = "kebab-case")]
pub enum DumpVerdict {
    /// Read to its end.
    Whole,
    Damaged(String),
    NotChecked(String),
}

/// What pg_restore says of every dump in an archive that was found whole. Blocks.
///
/// # Errors
/// The archive cannot be read; pg_restore cannot be started.
pub fn check_dumps(archive: impl Read) -> Result<Vec<(Scope, DumpVerdict)>> {
    let program = find();
    let mut verdicts = Vec::new();
    archive::each_dump(archive, |scope, dump| {
        let mut start = [0; 5];
        let verdict = match dump.read_exact(&mut start) {
            _ if program.is_none() => {
                DumpVerdict::NotChecked("there is no pg_restore on this machine".into())
            }
            Ok(()) if start == *b"PGDMP" => {
                let whole = &mut start.as_slice().chain(dump);
                ask(program.as_deref().unwrap_or(Path::new("pg_restore")), whole)?
            }
            _ => DumpVerdict::NotChecked("it is SQL text, which pg_restore does not read".into()),
        };
        verdicts.push((scope, verdict));
        Ok(())
    })
    .map_err(|archive::ReadError(cause)| RunError::Local {
        doing: "let pg_restore read the dumps".into(),
        cause,
    })?;
    Ok(verdicts)
}

/// In the path, or the newest where Enterprise Linux and Debian put it.
fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let mut versions: Vec<(u32, PathBuf)> = Vec::new();
    for (parent, prefix) in [("/usr", "pgsql-"), ("/usr/lib/postgresql", "")] {
        for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let number = name.to_str().and_then(|n| n.strip_prefix(prefix)?.parse().ok());
            versions.extend(number.map(|n| (n, entry.path().join("bin"))));
        }
    }
    versions.sort();
    // A newer one reads older dumps, not the other way round.
    dirs.splice(0..0, versions.into_iter().rev().map(|(_, dir)| dir));
    dirs.into_iter().map(|dir| dir.join("pg_restore")).find(|path| path.is_file())
}

fn ask(program: &Path, dump: &mut dyn Read) -> io::Result<DumpVerdict> {
    let mut child = Command::new("/bin/sh")
        .args(["-c", LIMITED])
        .arg(program)
        .arg("--file=/dev/null")
        .env_clear()
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let fed = feed(&mut child, dump);
    let ended = child.wait()?;
    let said = fed?;
    let last = said.lines().rfind(|l| !l.trim().is_empty()).unwrap_or("it says nothing");
    let last: String = last.chars().filter(|c| !c.is_control()).take(300).collect();
    // Of another time, or in an order that a pipe cannot give.
    let beyond = ["unsupported version", "non-seekable", "does not support compression"];
    Ok(match ended.success() {
        true => DumpVerdict::Whole,
        false if beyond.iter().any(|text| said.contains(text)) => DumpVerdict::NotChecked(last),
        false => DumpVerdict::Damaged(last),
    })
}

/// Gives it the dump and hears what it says.
fn feed(child: &mut Child, dump: &mut dyn Read) -> io::Result<String> {
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    let listener = std::thread::spawn(move || {
        let mut said = Vec::new();
        let Some(mut stderr) = stderr else { return Ok(said) };
        (&mut stderr).take(SAID_MAX).read_to_end(&mut said)?;
        // A full pipe would stop it.
        io::copy(&mut stderr, &mut io::sink())?;
        Ok::<_, io::Error>(said)
    });
    if let Some(mut stdin) = stdin {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = match dump.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(cause) => {
                    let _ = child.kill();
                    return Err(cause);
                }
            };
            match stdin.write_all(&buffer[..count]) {
                // It has read enough, or has failed: its code tells.
                Err(cause) if cause.kind() == io::ErrorKind::BrokenPipe => break,
                other => other?,
            }
        }
    }
    let said = listener.join().map_err(|_| io::Error::other("the listener failed"))??;
    Ok(hvbak_ssh::neutralise(&said))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn fixture(name: &str) -> PathBuf {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        root.join("../../tests/fixtures/engine-backup").join(name)
    }

    #[test]
    fn pg_restore_reads_every_real_dump_to_its_end() {
        for (name, whole, text) in [
            ("4.5.7-all.backup", 3, 0),
            ("4.4.10.7-all.backup", 2, 0),
            ("4.2.8.9-all.backup", 2, 0),
            ("4.5.7-all-small-size.backup", 1, 2),
            ("4.5.7-files.backup", 0, 0),
        ] {
            let verdicts = check_dumps(File::open(fixture(name)).unwrap()).unwrap();
            let count = |wanted: fn(&DumpVerdict) -> bool| {
                verdicts.iter().filter(|(_, v)| wanted(v)).count()
            };
            assert_eq!(count(|v| *v == DumpVerdict::Whole), whole, "{name}: {verdicts:?}");
            let told =
                |v: &DumpVerdict| matches!(v, DumpVerdict::NotChecked(w) if w.contains("SQL"));
            assert_eq!(count(told), text, "{name}: {verdicts:?}");
        }
    }

    #[test]
    fn a_dump_it_cannot_read_is_damaged_or_told() {
        let program = find().expect("pg_restore; the tests install it");
        let mut dumps = Vec::new();
        archive::each_dump(File::open(fixture("4.5.7-all.backup")).unwrap(), |_, dump| {
            let mut bytes = Vec::new();
            dump.read_to_end(&mut bytes)?;
            dumps.push(bytes);
            Ok(())
        })
        .unwrap();
        let ask = |bytes: &[u8]| ask(&program, &mut &*bytes).unwrap();
        let dump = &dumps[0];
        assert_eq!(ask(dump), DumpVerdict::Whole);
        for cut in [5, 100, dump.len() / 2, dump.len() - 40] {
            assert!(matches!(ask(&dump[..cut]), DumpVerdict::Damaged(_)), "{cut}");
        }
        let mut newer = dump.clone();
        newer[6] = 99;
        assert!(matches!(ask(&newer), DumpVerdict::NotChecked(_)), "{:?}", ask(&newer));
        // It says much and reads nothing.
        let noisy = Path::new("/bin/cat");
        assert!(matches!(
            super::ask(noisy, &mut &vec![0; 1 << 20][..]).unwrap(),
            DumpVerdict::Damaged(_)
        ));
    }
}
