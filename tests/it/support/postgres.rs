//! A real PostgreSQL server of a test's own. Used by the tests of several rooms.

use std::{
    fs,
    io::Write,
    net::TcpListener,
    os::unix::{fs::chown, process::CommandExt},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};

pub const NOBODY: u32 = 65534;

/// A server on loopback; stopped and gone on drop. Its superuser is `postgres`, with the
/// password `super`.
pub struct Postgres {
    server: Child,
    pub dir: tempfile::TempDir,
    pub bin: PathBuf,
    pub port: u16,
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // "Fast": sessions are thrown out.
        let _ = kill(Pid::from_raw(self.server.id().cast_signed()), Signal::SIGINT);
        let _ = self.server.wait();
    }
}

/// Where Debian keeps the newest.
fn bin() -> Option<PathBuf> {
    let dirs = fs::read_dir("/usr/lib/postgresql").ok()?;
    let found = dirs.filter_map(|dir| Some(dir.ok()?.path().join("bin")));
    found.filter(|bin| bin.join("initdb").exists()).max()
}

/// PostgreSQL does not run as root.
fn as_nobody(command: &mut Command) -> &mut Command {
    if geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command.current_dir("/")
}

impl Postgres {
    /// `None`: there is no server on this machine, and `skip` was told so.
    pub fn start_or(skip: impl FnOnce(&str)) -> Option<Self> {
        let Some(bin) = bin() else {
            skip("no PostgreSQL server; apt-get install postgresql");
            return None;
        };
        let dir = tempfile::Builder::new().prefix("hvbak-pg-").tempdir_in("/tmp");
        let dir = dir.expect("a folder");
        if geteuid().is_root() {
            chown(dir.path(), Some(NOBODY), Some(NOBODY)).expect("the folder's owner");
        }
        let (data, password) = (dir.path().join("data"), dir.path().join("password"));
        fs::write(&password, "super\n").expect("the password");
        let mut command = Command::new(bin.join("initdb"));
        command.arg("-D").arg(&data).args(["-U", "postgres", "-A", "scram-sha-256", "--locale=C"]);
        command.arg(format!("--pwfile={}", password.display()));
        let made = as_nobody(&mut command).output().expect("initdb");
        assert!(made.status.success(), "{made:?}");
        let free = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
        let port = free.expect("a free port").port();
        let mut command = Command::new(bin.join("postgres"));
        command.arg("-D").arg(&data).arg("-k").arg(dir.path()).args(["-p", &port.to_string()]);
        command.args(["-c", "listen_addresses=127.0.0.1,127.0.0.2", "-c", "fsync=off"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let server = as_nobody(&mut command).spawn().expect("the server");
        let postgres = Self { server, dir, bin, port };
        for _ in 0..300 {
            if postgres.psql("postgres", "select 1").status.success() {
                return Some(postgres);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("PostgreSQL does not come up");
    }

    pub fn client(&self, program: &str, database: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        command.env("PGPASSWORD", "super").args(["-h", "127.0.0.1", "-U", "postgres", "-w"]);
        command.args(["-p", &self.port.to_string(), "-d", database]).current_dir("/");
        command
    }

    pub fn psql(&self, database: &str, sql: &str) -> Output {
        self.client("psql", database).args(["-XAtq", "-c", sql]).output().expect("psql")
    }

    #[track_caller]
    pub fn sql(&self, database: &str, sql: &str) -> String {
        let done = self.psql(database, sql);
        assert!(done.status.success(), "{done:?}");
        String::from_utf8_lossy(&done.stdout).trim().to_owned()
    }

    /// An empty database as it should be for an engine.
    pub fn database(&self, name: &str, owner: &str) {
        self.sql("postgres", &format!("create database {name} owner {owner} encoding 'UTF8' template template0 lc_collate 'C' lc_ctype 'C'"));
    }

    /// Lets clients of an address in.
    pub fn admit(&self, address: &str) {
        let path = self.dir.path().join("data/pg_hba.conf");
        let line = format!("\nhost all all {address}/32 scram-sha-256\n");
        let file = fs::OpenOptions::new().append(true).open(path);
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("pg_hba.conf");
        self.sql("postgres", "select pg_reload_conf()");
    }
}
