//! A PostgreSQL of the drill's own: made in its scratch directory, reached through a socket
//! there and by no network, run without privileges, gone with the drill.
//!
//! No setting and no database of a PostgreSQL that this machine may serve with is touched.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;

use super::child::{self, Guarded, Owner, Said, Start};
use crate::error::{Result, RunError};

/// How long the server may take to be ready.
const READY: Duration = Duration::from_secs(60);

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
        let tool = Start { owner, dir, group: None, signal: "KILL" };
        let options = ["-D", "data", "-A", "peer", "-E", "UTF8", "--locale=C", "--no-sync"];
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
            let failed = match self.query("postgres", "select 1", cancel).await {
                Ok(_) => return Ok(()),
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
        self.query("postgres", &format!("create database {database}"), cancel).await?;
        let (socket, dump) = (self.start.dir.display().to_string(), dump.display().to_string());
        let (program, args) = if plain {
            ("psql", vec!["-X", "-q", "-h", &socket, "-d", database, "-f", &dump])
        } else {
            let owners = ["--no-owner", "--no-privileges", "-h", &socket, "-d", database, &dump];
            ("pg_restore", owners.to_vec())
        };
        let said = self.run(program, &args, cancel).await?;
        let complaints = complaints(&said.stderr);
        // An end without a word is one of its own: killed, or no memory.
        if complaints.is_empty() && said.stderr.trim().is_empty() && said.code != Some(0) {
            succeed(program, &said)?;
        }
        Ok(complaints)
    }

    /// Lines that a question is answered with, fields separated by `|`.
    pub async fn query(
        &mut self,
        database: &str,
        sql: &str,
        cancel: &CancellationToken,
    ) -> Result<Vec<String>> {
        let socket = self.start.dir.display().to_string();
        let args = ["-X", "-A", "-t", "-q", "-w", "-h", &socket, "-d", database, "-c", sql];
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

/// Errors of a restore that lose data. Not among them: objects that every new database has,
/// and extensions that are not installed here; functions of these are no data.
fn complaints(stderr: &str) -> Vec<String> {
    const HARMLESS: [&str; 8] = [
        "already exists",
        "must be owner of extension",
        "must be owner of language",
        "must be owner of schema",
        "could not open extension control file",
        "is not available",
        "extension \"",
        "function uuid_",
    ];
    const SIGNS: [&str; 5] =
        ["pg_restore: error:", "pg_restore: [", "ERROR: ", "FATAL: ", "a worker process died"];
    let bad = |line: &&str| SIGNS.iter().any(|sign| line.contains(sign));
    let harmless = |line: &&str| {
        HARMLESS.iter().any(|text| line.contains(text))
            || line.contains("errors ignored on restore")
    };
    let lines = stderr.lines().filter(bad).filter(|line| !harmless(line));
    lines.map(|line| line.chars().take(300).collect()).collect()
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
        assert_eq!(complaints(said), ["pg_restore: error: could not uncompress data: (null)"]);
    }
}
