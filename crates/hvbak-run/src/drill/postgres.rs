//! A PostgreSQL of the drill's own: made in its scratch directory, reached through a socket
//! there and by no network, run without privileges, gone with the drill.
//!
//! No setting and no database of a PostgreSQL that this machine may serve with is touched.
//! Invariant: nothing of a dump is run with a superuser's rights, who could start programs.

use std::{
    io::{self, BufRead},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;

use super::{
    child::{self, Guarded, Owner, Said, Start},
    scratch,
};
use crate::error::{Result, RunError};

/// How long the server may take to be ready.
const READY: Duration = Duration::from_secs(60);
/// Makes databases, and never sees what is in them.
const SUPER: &str = "postgres";
/// Owns the databases, reads the dumps and asks. What a dump brings (functions, views,
/// search paths) may run whenever somebody asks.
const PLAIN: &str = "restorer";

/// The programs of one installed version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    dir: PathBuf,
    /// `15`.
    pub major: u32,
}

impl Programs {
    /// One of them.
    pub fn tool(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// Looks for the newest installed server: Debian's and PGDG's directories, then the path.
pub fn find() -> Option<Programs> {
    let mut dirs: Vec<PathBuf> = Vec::new();
    for (base, beginning) in [("/usr/lib/postgresql", ""), ("/usr", "pgsql-")] {
        for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(beginning) {
                dirs.push(entry.path().join("bin"));
            }
        }
    }
    dirs.extend(
        child::find("initdb", &[]).and_then(|p| p.canonicalize().ok()?.parent().map(Into::into)),
    );
    let whole = |dir: &PathBuf| {
        ["initdb", "postgres", "pg_restore", "psql"].iter().all(|name| dir.join(name).is_file())
    };
    let found = dirs.into_iter().filter(whole).filter_map(|dir| {
        let said = std::process::Command::new(dir.join("postgres")).arg("--version").output();
        let major = major(&String::from_utf8_lossy(&said.ok()?.stdout))?;
        Some(Programs { dir, major })
    });
    found.max_by_key(|programs| programs.major)
}

/// The number of a version: `postgres (PostgreSQL) 15.18 (Debian …)`, `15.18`, `9.5.25`.
pub fn major(text: &str) -> Option<u32> {
    let word = text.split_whitespace().find(|w| w.starts_with(|c: char| c.is_ascii_digit()))?;
    word.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// A server at work.
pub struct Cluster<'a> {
    programs: &'a Programs,
    start: Start<'a>,
    server: Guarded,
}

impl<'a> Cluster<'a> {
    /// Makes one in a directory of the owner's, and waits until it answers.
    pub async fn start(
        programs: &'a Programs,
        owner: &'a Owner,
        dir: &'a Path,
        cancel: &CancellationToken,
    ) -> Result<Self> {
        let reserve = scratch::RESERVE;
        let tool = Start { owner, dir, group: None, signal: "KILL", reserve };
        // Nobody else comes into the directory of the socket.
        let options = ["-D", "data", "-U", SUPER, "-A", "trust", "-E", "UTF8", "--locale=C"];
        let options = [&options[..], &["--no-sync"]].concat();
        let said = tool.run(cancel, &programs.tool("initdb"), &options).await?;
        succeed("initdb", &said)?;
        // Told to quit, the server removes its shared memory.
        let start = Start { signal: "QUIT", ..tool.clone() };
        let server = [
            "-D",
            "data",
            "-k",
            ".",
            "-c",
            "listen_addresses=",
            "-c",
            "unix_socket_permissions=0700",
            "-c",
            "fsync=off",
            "-c",
            "full_page_writes=off",
            "-c",
            "max_wal_size=256MB",
            "-c",
            "logging_collector=off",
        ];
        // A relative directory of sockets is relative to the data.
        let socket = dir.display().to_string();
        let server: Vec<String> =
            server.map(|word| if word == "." { socket.clone() } else { word.into() }).into();
        let server = start.start(&programs.tool("postgres"), &server)?;
        let mut cluster = Self { programs, start: tool, server };
        match cluster.ready(cancel).await {
            Ok(()) => Ok(cluster),
            Err(error) => {
                cluster.stop().await;
                Err(error)
            }
        }
    }

    async fn ready(&mut self, cancel: &CancellationToken) -> Result<()> {
        let until = tokio::time::Instant::now() + READY;
        loop {
            let failed = match self.ask(SUPER, "postgres", "select 1", cancel).await {
                Ok(_) => break,
                Err(RunError::Cancelled) => return Err(RunError::Cancelled),
                Err(error) => error,
            };
            let mut words = vec![0; 4096];
            let pause = Duration::from_millis(200);
            // Its log, so that it never waits for us; an end of it is the server's.
            let read = tokio::time::timeout(pause, self.server.stderr.read(&mut words)).await;
            if matches!(read, Ok(Ok(0) | Err(_))) || tokio::time::Instant::now() >= until {
                return Err(failed);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let role = format!(
            "create role {PLAIN} login nosuperuser nocreatedb nocreaterole noreplication nobypassrls"
        );
        self.ask(SUPER, "postgres", &role, cancel).await.map(|_| ())
    }

    /// A database for a dump, with what only a superuser may make in it.
    async fn prepare(&mut self, database: &str, cancel: &CancellationToken) -> Result<()> {
        let make = format!("create database {database} owner {PLAIN}");
        self.ask(SUPER, "postgres", &make, cancel).await?;
        let own = format!("alter schema public owner to {PLAIN}");
        self.ask(SUPER, database, &own, cancel).await?;
        for extension in ["plpgsql", "uuid-ossp"] {
            let make = format!("create extension if not exists \"{extension}\"");
            match self.ask(SUPER, database, &make, cancel).await {
                // Not installed here.
                Ok(_) | Err(RunError::Tool { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Makes a database and reads a dump into it; complaints that mean nothing here are left
    /// out of what comes back.
    pub async fn restore(
        &mut self,
        database: &str,
        dump: &Path,
        plain: bool,
        cancel: &CancellationToken,
    ) -> Result<Vec<String>> {
        self.prepare(database, cancel).await?;
        let (socket, dump) = (self.start.dir.display().to_string(), dump.display().to_string());
        let (program, args) = if plain {
            ("psql", vec!["-X", "-q", "-h", &socket, "-U", PLAIN, "-d", database, "-f", &dump])
        } else {
            let to = ["-h", &socket, "-U", PLAIN, "-d", database, &dump];
            ("pg_restore", [&["--no-owner", "--no-privileges"], &to[..]].concat())
        };
        let said = self.run(program, &args, cancel).await?;
        let Complaints { bad, harmless } = complaints(&said.stderr);
        // pg_restore ends with 1 when it passed errors over; any other end is one of its own:
        // killed, no memory, no connection.
        let passed_over = !plain && said.code == Some(1) && harmless > 0;
        if bad.is_empty() && !passed_over {
            succeed(program, &said)?;
        }
        Ok(bad)
    }

    /// Lines that a question is answered with, fields separated by `|`.
    pub async fn query(
        &mut self,
        database: &str,
        sql: &str,
        cancel: &CancellationToken,
    ) -> Result<Vec<String>> {
        self.ask(PLAIN, database, sql, cancel).await
    }

    async fn ask(
        &mut self,
        role: &str,
        database: &str,
        sql: &str,
        cancel: &CancellationToken,
    ) -> Result<Vec<String>> {
        let socket = self.start.dir.display().to_string();
        let to = ["-h", &socket, "-U", role, "-d", database, "-c", sql];
        let args = [&["-X", "-A", "-t", "-q", "-w"], &to[..]].concat();
        let said = self.run("psql", &args, cancel).await?;
        succeed("psql", &said)?;
        Ok(String::from_utf8_lossy(&said.stdout).lines().map(str::to_owned).collect())
    }

    /// Runs a client while the server's own words are read away.
    async fn run(
        &mut self,
        program: &str,
        args: &[&str],
        cancel: &CancellationToken,
    ) -> Result<Said> {
        let path = self.programs.tool(program);
        let client = self.start.run(cancel, &path, args);
        tokio::pin!(client);
        let (mut words, mut talks) = (vec![0; 16 << 10], true);
        loop {
            tokio::select! {
                said = &mut client => return said,
                read = self.server.stderr.read(&mut words), if talks => {
                    talks = matches!(read, Ok(1..));
                }
            }
        }
    }

    /// Ends it.
    pub async fn stop(self) {
        self.server.end().await;
    }
}

fn succeed(tool: &str, said: &Said) -> Result<()> {
    if said.code == Some(0) {
        return Ok(());
    }
    Err(RunError::Tool { tool: tool.to_owned(), text: said.last_line() })
}

/// What a restore has complained of.
struct Complaints {
    /// Errors that lose data.
    bad: Vec<String>,
    /// How many others there were.
    harmless: usize,
}

fn complaints(stderr: &str) -> Complaints {
    const SIGNS: [&str; 6] = [
        "pg_restore: error:",
        "pg_restore: [",
        "psql: error:",
        "ERROR:  ",
        "FATAL:  ",
        "a worker process died",
    ];
    // Of older versions: which entry the next line is about.
    const CONTEXT: [&str; 2] = ["Error while PROCESSING TOC", "Error from TOC entry"];
    let mut complaints = Complaints { bad: Vec::new(), harmless: 0 };
    for line in stderr.lines().filter(|line| SIGNS.iter().any(|sign| line.contains(sign))) {
        if line.split_once("ERROR:  ").is_some_and(|(_, text)| is_harmless(text.trim())) {
            complaints.harmless += 1;
        } else if !CONTEXT.iter().any(|words| line.contains(words)) {
            complaints.bad.push(line.chars().take(300).collect());
        }
    }
    complaints
}

/// Whether an error loses no data: objects that every new database has, extensions that are
/// not installed here (their functions are no data), owners and rights.
fn is_harmless(error: &str) -> bool {
    const WHOLE: [&str; 14] = [
        "language \"plpgsql\" already exists",
        "must be owner of language plpgsql",
        "permission denied for language c",
        "extension \"plpgsql\" already exists",
        "extension \"uuid-ossp\" already exists",
        "must be owner of extension plpgsql",
        "must be owner of extension uuid-ossp",
        "schema \"public\" already exists",
        "must be owner of schema public",
        "must be member of role \"postgres\"",
        "must be able to SET ROLE \"postgres\"",
        "permission denied to change default privileges",
        "extension \"uuid-ossp\" does not exist",
        "extension \"uuid-ossp\" is not available",
    ];
    const ENDS: [(&str, &str); 10] = [
        ("could not open extension control file \"", "\": No such file or directory"),
        ("permission denied to create extension \"", "\""),
        ("extension \"", "\" is not available"),
        ("extension \"", "\" does not exist"),
        ("role \"", "\" does not exist"),
        ("function \"uuid_", "\" already exists with same argument types"),
        ("function public.uuid_", " does not exist"),
        ("function uuid_", " does not exist"),
        ("must be owner of function uuid_", ""),
        ("must be owner of function public.uuid_", ""),
    ];
    let between = |(begin, end): &(&str, &str)| {
        let middle = error.strip_prefix(begin).and_then(|rest| rest.strip_suffix(end));
        let name = |text: &str| !text.contains('"');
        middle.is_some_and(name)
    };
    WHOLE.contains(&error) || ENDS.iter().any(between)
}

/// The number of the first line in which psql could find a command of its own: it would start
/// programs and write files. psql finds them wherever it sees no text in quotes, and who
/// wrote the dump decides what it sees: so every backslash of every line counts.
///
/// Harmless are those of data (`\N`, `\\`, `\t`, …), for no command that does anything begins
/// so, as long as no program is named in backticks behind them. In some encodings a
/// backslash belongs to the byte before it, if that is not ASCII.
pub fn psql_command(dump: impl BufRead) -> io::Result<Option<u64>> {
    for (number, line) in (1..).zip(dump.split(b'\n')) {
        let line = line?;
        let line = line.strip_suffix(b"\r").unwrap_or(&line);
        // psql's line would end there, and its next one begin anywhere.
        if line.contains(&0) {
            return Ok(Some(number));
        }
        let unrestrict = line.strip_prefix(b"\\unrestrict ");
        let end = unrestrict.is_some_and(|key| key.iter().all(u8::is_ascii_alphanumeric));
        if !line.contains(&b'\\') || line == b"\\." || end {
            continue;
        }
        if line.contains(&b'`') || !line_is_data(line) {
            return Ok(Some(number));
        }
    }
    Ok(None)
}

fn line_is_data(line: &[u8]) -> bool {
    let mut at = 0;
    while let Some(found) = line[at..].iter().position(|byte| *byte == b'\\') {
        let start = at + found;
        let length = line[start..].iter().take_while(|byte| **byte == b'\\').count();
        at = start + length;
        let shifted = start > 0 && line[start - 1] >= 0x80;
        let escapes = length % 2 == 1 || shifted;
        if escapes && !line.get(at).is_some_and(|next| b"Nbfnrtv".contains(next)) {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_complaints_are_read() {
        assert_eq!(major("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"), Some(15));
        assert_eq!((major("9.5.25"), major("16beta1"), major("none")), (Some(9), Some(16), None));
        let said = "pg_restore: error: could not execute query: ERROR:  schema \"public\" already exists\n\
             pg_restore: warning: errors ignored on restore: 1\n\
             pg_restore: error: could not uncompress data: (null)\n\
             psql:x.sql:8: ERROR:  extension \"uuid-ossp\" is not available\n\
             NOTICE: nothing\n";
        let found = complaints(said);
        assert_eq!(found.bad, ["pg_restore: error: could not uncompress data: (null)"]);
        assert_eq!(found.harmless, 2);
    }

    #[test]
    fn only_errors_of_exactly_that_form_are_harmless() {
        for text in [
            "must be owner of extension uuid-ossp",
            "could not open extension control file \"/usr/x.control\": No such file or directory",
            "function public.uuid_nil() does not exist",
            "must be owner of function public.uuid_nil",
            "role \"engine\" does not exist",
        ] {
            assert!(is_harmless(text), "{text}");
        }
        for text in [
            "relation \"vm_static\" already exists",
            "schema \"dwh\" already exists",
            "invalid input: \"schema \"public\" already exists\"",
            "duplicate key value: extension \"x\" is not available",
            "must be owner of function insert_uuid_vm",
            "must be superuser or a member of the pg_execute_server_program role to COPY",
        ] {
            assert!(!is_harmless(text), "{text}");
        }
    }

    #[test]
    fn commands_of_psql_are_found_wherever_they_hide() {
        let found = |text: &[u8]| psql_command(text).unwrap();
        for good in [
            &b"\\restrict abc1\nCOPY a FROM stdin;\n\\N\tb\\tc\\\\d\n\\.\n\\unrestrict abc1\n"[..],
            b"select E'\\\\d+';\r\n\\.\r\n",
            b"f\xc3\xbc\\n\n`a`\n",
            b"",
        ] {
            assert_eq!(found(good), None, "{}", String::from_utf8_lossy(good));
        }
        for bad in [
            &b"\n\\! id\n"[..],
            b"\n  \\connect x",
            b"\nselect 1; \\! id",
            b"\n\\.\\! id",
            b"\n\\f `id`",
            b"\n\\unrestrict a \\! id",
            b"\n\x81\\\\! id",
            b"\n\\\0\n",
            b"\nx\\",
        ] {
            assert_eq!(found(bad), Some(2), "{}", String::from_utf8_lossy(bad));
        }
    }
}
