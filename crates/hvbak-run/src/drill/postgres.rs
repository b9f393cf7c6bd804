//! A PostgreSQL of the drill's own: made in its scratch directory, reached through a socket
//! there and by no network, run without privileges, gone with the drill.
//!
//! No setting and no database of a PostgreSQL that this machine may serve with is touched.
//! Invariant: nothing of a dump is run with a superuser's rights, who could start programs.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;

use super::{
    child::{self, Guarded, Owner, Said, Start},
    complaints::{Complaints, complaints},
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(major("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"), Some(15));
        assert_eq!((major("9.5.25"), major("16beta1"), major("none")), (Some(9), Some(16), None));
    }
}
