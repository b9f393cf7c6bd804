//! A manager for tests: an sshd, a directory that is its root, the stand-in in it.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use hvbak_manager::Request;
use hvbak_repo::Repository;
use hvbak_run::{
    Event, ManagerBackupOptions, ManagerBackupReport, ManagerContext, ManagerSettings, RunError,
    Settings, Sink, SshSettings, Timeouts, TransferSettings, WorkerSettings,
};
use tokio_util::sync::CancellationToken;

use crate::sshd::{Setup, Sshd, current_user};

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/engine-backup").join(name)
}

/// Remembers what was told.
#[derive(Default)]
pub struct Ears(pub Mutex<Vec<String>>);

impl Sink for Ears {
    fn event(&self, event: &Event) {
        self.0.lock().unwrap().push(format!("{event:?}"));
    }
}

pub struct Stage {
    pub sshd: Sshd,
    pub repository: tempfile::TempDir,
    pub ears: Arc<Ears>,
}

impl Stage {
    /// A manager of this version with nothing to replay yet.
    pub fn new(version: &str) -> Self {
        let sshd = Sshd::with(Setup { host_root: true, ..Setup::default() });
        let root = sshd.root();
        let services = root.join("usr/share/ovirt-engine/services/ovirt-engine");
        for dir in [&services, &root.join("usr/bin"), &root.join("play")] {
            fs::create_dir_all(dir).unwrap();
        }
        let conf = format!("ENGINE_USR=x\nPACKAGE_VERSION={version}\n");
        fs::write(services.join("ovirt-engine.conf"), conf).unwrap();
        let program = root.join("usr/bin/engine-backup");
        fs::copy(fixture("stand-in.sh"), &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let repository = tempfile::tempdir().unwrap();
        Repository::init(repository.path()).unwrap();
        Self { sshd, repository, ears: Arc::default() }
    }

    /// A machine to restore to: a stored point of the recorded archive, and stand-ins for
    /// the programs around engine-backup. The restore that is replayed is a good one.
    pub async fn restorable(version: &str) -> Self {
        let stage = Self::new(version);
        stage.play("b_ok_all");
        stage.archive("4.5.7-all.backup");
        stage.backup(&["all"]).await.unwrap();
        fs::remove_file(stage.sshd.root().join("play/archive")).unwrap();
        fs::remove_file(stage.sshd.root().join("calls")).unwrap();
        fs::remove_dir_all(stage.work()).unwrap();
        let bin = stage.sshd.root().join("usr/bin");
        for name in [
            "systemctl",
            "locale",
            "postgresql-setup",
            "runuser",
            "curl",
            "engine-cleanup",
            "engine-setup",
            "psql",
            "pg_dump",
        ] {
            fs::copy(fixture("stand-in-tools.sh"), bin.join(name)).unwrap();
            fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::create_dir_all(stage.sshd.root().join("play/machine")).unwrap();
        let release = "ID=\"centos\"\nID_LIKE=\"rhel fedora\"\nVERSION_ID=\"9\"\n";
        fs::create_dir_all(stage.sshd.root().join("etc")).unwrap();
        fs::write(stage.sshd.root().join("etc/os-release"), release).unwrap();
        stage.play("r_ok_perm");
        stage
    }

    /// Engine and databases as they are on a manager that is in use.
    pub fn in_use(&self) {
        self.machine("nonempty", "");
        self.machine("active", "ovirt-engine\novirt-engine-dwhd\n");
        let dir = self.sshd.root().join("etc/ovirt-engine-setup.conf.d");
        fs::create_dir_all(&dir).unwrap();
        let text = "OVESETUP_ENGINE_CORE/enable=bool:True\n";
        fs::write(dir.join("20-setup-ovirt-post.conf"), text).unwrap();
        self.set_up_as("engine.example.test");
    }

    /// The engine's name in its configuration.
    pub fn set_up_as(&self, name: &str) {
        let dir = self.sshd.root().join("etc/ovirt-engine/engine.conf.d");
        fs::create_dir_all(&dir).unwrap();
        let text = format!("ENGINE_FQDN={name}\nENGINE_PROXY_ENABLED=true\n");
        fs::write(dir.join("10-setup-protocols.conf"), text).unwrap();
    }

    /// A configuration that says where the databases are.
    pub fn configured(&self) {
        let dir = self.sshd.root().join("etc/ovirt-engine/engine.conf.d");
        fs::create_dir_all(&dir).unwrap();
        for (file, name) in [("10-setup-database.conf", "ENGINE"), ("10-setup-dwh.conf", "DWH")] {
            let text = format!(
                "{name}_DB_HOST=\"localhost\"\n{name}_DB_USER=\"u\"\n{name}_DB_PASSWORD=\"machine's own\"\n{name}_DB_DATABASE=\"d\"\n"
            );
            fs::write(dir.join(file), text).unwrap();
        }
    }

    /// What the programs around engine-backup say.
    pub fn machine(&self, name: &str, text: &str) {
        fs::write(self.sshd.root().join("play/machine").join(name), text).unwrap();
    }

    /// What engine-backup and the others were called with.
    pub fn calls(&self) -> String {
        fs::read_to_string(self.sshd.root().join("calls")).unwrap_or_default()
    }

    /// A file below the manager's root.
    pub fn on_manager(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.sshd.root().join(name)).ok()
    }

    /// The directories of what was done with points, oldest first.
    pub fn kept(&self) -> Vec<PathBuf> {
        let mut kept: Vec<_> = fs::read_dir(self.stored())
            .unwrap()
            .map(|e| e.unwrap().path())
            .filter(|p| p.file_name().unwrap().to_string_lossy().starts_with(".restore-"))
            .collect();
        kept.sort();
        kept
    }

    /// Open journals.
    pub fn journals(&self) -> usize {
        fs::read_dir(self.repository.path().join("journal")).unwrap().count()
    }

    /// Replays a recorded run.
    pub fn play(&self, name: &str) {
        let text = fs::read_to_string(fixture("transcripts.jsonl")).unwrap();
        let run: serde_json::Value = text
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .find(|run| run["name"] == name)
            .unwrap_or_else(|| panic!("no run {name} is recorded"));
        self.put("stdout", run["stdout"].as_str().unwrap().as_bytes());
        self.put("stderr", run["stderr"].as_str().unwrap().as_bytes());
        self.put("rc", run["rc"].to_string().as_bytes());
    }

    /// Settings that know the machine under the name `hv1`.
    pub fn settings_with_host(&self) -> Settings {
        let mut settings = Settings::clone(&self.context().settings);
        let host = hvbak_run::HostOverride {
            address: Some("127.0.0.1".into()),
            port: Some(self.sshd.port),
            user: None,
            host_key: Some(self.sshd.host_key("ed25519")),
        };
        settings.hosts.insert("hv1".into(), host);
        settings
    }

    /// A file beside the replayed ones.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        fs::write(self.sshd.root().join("play").join(name), bytes).unwrap();
    }

    pub fn archive(&self, name: &str) {
        self.put("archive", &fs::read(fixture(name)).unwrap());
    }

    pub fn context(&self) -> ManagerContext {
        self.context_for(self.repository.path())
    }

    pub fn context_for(&self, repository: &Path) -> ManagerContext {
        let settings = Settings {
            ssh: SshSettings {
                keepalive: std::time::Duration::from_secs(15),
                user: current_user(),
                key_file: self.sshd.path().join("key"),
                passphrase: None,
                agent: false,
                jump: None,
                connect_timeout: std::time::Duration::from_secs(20),
            },
            worker: WorkerSettings { installed: false, push: false, binary: None },
            transfer: TransferSettings { streams: 1, threads: 1, compression: 1, rate_limit: 0 },
            timeouts: Timeouts {
                snapshot: std::time::Duration::ZERO,
                merge: std::time::Duration::ZERO,
                disk: std::time::Duration::ZERO,
                vm: std::time::Duration::ZERO,
            },
            reserve: 0,
            keep_snapshot: false,
            limits: hvbak_plan::Limits { total: 1, per_host: 1, per_domain: 1 },
            manager: None,
            hosts: std::collections::BTreeMap::new(),
            guests: std::collections::BTreeMap::new(),
        };
        ManagerContext {
            repository: Arc::new(Repository::open(repository).unwrap()),
            settings: Arc::new(settings),
            manager: ManagerSettings {
                address: "127.0.0.1".into(),
                port: self.sshd.port,
                user: current_user(),
                host_key: Some(self.sshd.host_key("ed25519")),
                name: Some("engine.example.test".into()),
                work_dir: "/var/lib/hvbak-manager".into(),
                program: "/usr/bin/engine-backup".into(),
            },
            identities: None,
            events: self.ears.clone(),
            cancel: CancellationToken::new(),
            job: hvbak_types::JobId::random(),
        }
    }

    pub async fn backup(&self, scopes: &[&str]) -> Result<ManagerBackupReport, RunError> {
        hvbak_run::manager_backup(&self.context(), &options(scopes)).await
    }

    /// hvbak's directory on the manager.
    pub fn work(&self) -> PathBuf {
        self.sshd.root().join("var/lib/hvbak-manager")
    }

    /// What lies in it beside the lock.
    pub fn left(&self) -> Vec<String> {
        fs::read_dir(self.work())
            .into_iter()
            .flatten()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "lock")
            .collect()
    }

    /// The repository's part for the manager.
    pub fn stored(&self) -> PathBuf {
        self.repository.path().join("manager/engine.example.test")
    }
}

pub fn options(scopes: &[&str]) -> ManagerBackupOptions {
    ManagerBackupOptions {
        request: Request::parse(scopes).unwrap(),
        format: hvbak_manager::command::Format::default(),
        recipients: hvbak_repo::Recipients::default(),
        engine: Err("there is no engine in this test".into()),
    }
}

/// The error and its causes.
pub fn text(error: &RunError) -> String {
    hvbak_run::chain(error)
}
