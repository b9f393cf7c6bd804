//! One file per command: arguments in, calls of `hvbak-run`, words out. No policy here.

pub mod backup;
pub mod cleanup;
pub mod doctor;
pub mod drill;
pub mod dwh;
pub mod enroll;
mod errors_page;
pub mod export;
pub mod hosted_engine;
pub mod hosted_engine_plan;
pub mod hosted_engine_walk;
pub mod init;
pub mod list;
pub mod manager_backup;
pub mod manager_paths;
pub mod manager_points;
pub mod manager_prune;
pub mod manager_restore;
pub mod manager_verify;
pub mod manual;
pub mod points;
pub mod policy;
pub mod prune;
pub mod report;
pub mod restore;
pub mod role;
pub mod runbook;
pub mod verify;

use std::{path::PathBuf, sync::Arc, time::Duration};

use hvbak_repo::{Identities, Recipients};
use hvbak_run::{
    Context, EngineAccess, EnrollContext, GuestSettings, HostOverride, ManagerContext,
    ManagerSettings, RunError, Settings, SshSettings, Timeouts, TransferSettings, WorkerSettings,
};
use tokio_util::sync::CancellationToken;

use crate::{
    cli::IdentityArg,
    config::{Config, ConfigError, ManagerSection, WorkerMode, read_identities, read_secret},
    exit::{CliError, chain},
    printer::Printer,
};

/// What every command has at hand.
pub struct Face {
    pub config_path: PathBuf,
    pub printer: Arc<Printer>,
    pub cancel: CancellationToken,
}

/// How a command ended: its exit code and the fields of its result line.
pub type Outcome = Result<(u8, serde_json::Value), CliError>;

impl Face {
    pub fn config(&self) -> Result<Config, CliError> {
        Ok(Config::load(&self.config_path)?)
    }

    /// Logs in to the engine and opens the repository.
    pub async fn context(&self) -> Result<Context, CliError> {
        let config = self.config()?;
        let repository = hvbak_run::open_repository(&config.repository.path)?;
        let engine = self.engine(&config).await?;
        Ok(self.assemble(&config, engine, repository)?)
    }

    /// Logs in to the engine.
    pub async fn engine(&self, config: &Config) -> Result<hvbak_engine::Engine, CliError> {
        let password = config.engine_password(&self.config_path)?;
        let ca = match &config.engine.ca_file {
            None => None,
            Some(path) => Some(std::fs::read(path).map_err(|cause| CliError::Io {
                text: format!("cannot read CA file {}", path.display()),
                cause,
            })?),
        };
        let login = hvbak_run::login(
            &config.engine.url,
            ca,
            &config.engine.username,
            password,
            config.engine.connect_to.as_deref(),
        );
        // A dropped login leaves nothing but a token that expires.
        tokio::select! {
            engine = login => Ok(engine?),
            () = self.cancel.cancelled() => Err(RunError::Cancelled.into()),
        }
    }

    /// What an enrolment needs: no engine.
    pub fn enroll_context(&self) -> Result<EnrollContext, CliError> {
        let config = self.config()?;
        let repository = hvbak_run::open_repository(&config.repository.path)?;
        Ok(EnrollContext {
            repository: Arc::new(repository),
            settings: Arc::new(settings(&config)?),
            events: self.printer.clone(),
            cancel: self.cancel.clone(),
        })
    }

    /// What jobs on the manager need: no engine.
    pub fn manager_context(&self) -> Result<ManagerContext, CliError> {
        let config = self.config()?;
        let Some(section) = &config.manager else {
            return Err(CliError::Usage {
                text: "the configuration has no section [manager]".into(),
                hint: Some("add `[manager]` with `host = \"engine.example.com\"`".into()),
            });
        };
        let repository = hvbak_run::open_repository(&config.repository.path)?;
        Ok(ManagerContext {
            repository: Arc::new(repository),
            settings: Arc::new(settings(&config)?),
            manager: manager_settings(section),
            identities: None,
            events: self.printer.clone(),
            cancel: self.cancel.clone(),
            job: hvbak_types::JobId::random(),
        })
    }

    /// Whom the manager's archives are encrypted to.
    pub fn recipients(&self) -> Result<Recipients, CliError> {
        let config = self.config()?;
        let lists = config.manager.as_ref().map(ManagerSection::all_recipients);
        Ok(lists.transpose()?.unwrap_or_default())
    }

    /// How the engine is asked of a backup, or why it cannot be.
    pub fn engine_access(&self) -> Result<EngineAccess, String> {
        let told = |cause: &dyn std::error::Error| format!("the engine: {}", chain(cause));
        let config = self.config().map_err(|e| told(&e))?;
        let password = config.engine_password(&self.config_path).map_err(|e| told(&e))?;
        let ca = config.engine.ca_file.as_ref().map(std::fs::read).transpose();
        Ok(EngineAccess {
            url: config.engine.url,
            ca: ca.map_err(|e| told(&e))?,
            username: config.engine.username,
            password,
            connect_to: config.engine.connect_to,
        })
    }

    /// Puts a context together from its parts.
    pub fn assemble(
        &self,
        config: &Config,
        engine: hvbak_engine::Engine,
        repository: hvbak_repo::Repository,
    ) -> Result<Context, ConfigError> {
        Ok(Context {
            engine,
            repository: Arc::new(repository),
            settings: Arc::new(settings(config)?),
            events: self.printer.clone(),
            cancel: self.cancel.clone(),
            job: hvbak_types::JobId::random(),
        })
    }
}

fn settings(config: &Config) -> Result<Settings, ConfigError> {
    let passphrase = match &config.ssh.passphrase_file {
        None => None,
        Some(path) => Some(read_secret("passphrase file", path)?),
    };
    let minutes = |m: u64| Duration::from_secs(m.saturating_mul(60));
    Ok(Settings {
        ssh: SshSettings {
            user: config.ssh.user.clone(),
            key_file: config.ssh.key_file.clone(),
            passphrase,
            agent: config.ssh.agent,
            jump: config.ssh.jump.clone().map(|j| (j, config.ssh.jump_host_key.clone())),
            connect_timeout: Duration::from_secs(config.ssh.connect_timeout_seconds.max(1)),
            keepalive: Duration::from_secs(config.ssh.keepalive_seconds.clamp(1, 3600)),
        },
        worker: WorkerSettings {
            installed: config.worker.mode != WorkerMode::Push,
            push: config.worker.mode != WorkerMode::Installed,
            binary: find_worker(config),
        },
        transfer: TransferSettings {
            streams: config.transfer.streams.clamp(1, 8),
            threads: config.transfer.threads,
            compression: config.transfer.compression,
            rate_limit: config.transfer.rate_limit_mib << 20,
        },
        timeouts: Timeouts {
            snapshot: minutes(config.backup.snapshot_timeout_minutes),
            merge: minutes(config.backup.merge_timeout_minutes),
            disk: minutes(config.backup.disk_timeout_minutes),
            vm: minutes(10),
        },
        reserve: config.repository.reserve_gib << 30,
        keep_snapshot: config.backup.keep_snapshot,
        limits: hvbak_plan::Limits {
            total: config.limits.vms,
            per_host: config.limits.vms_per_host,
            per_domain: config.limits.vms_per_storage_domain,
        },
        manager: config.manager.as_ref().map(manager_settings),
        hosts: config
            .hosts
            .iter()
            .map(|(name, host)| {
                let host = HostOverride {
                    address: host.address.clone(),
                    port: host.port,
                    user: host.user.clone(),
                    host_key: host.host_key.clone(),
                };
                (name.clone(), host)
            })
            .collect(),
        guests: config.guests.iter().map(|(name, guest)| (name.clone(), way_in(guest))).collect(),
    })
}

fn way_in(guest: &crate::config::GuestSection) -> GuestSettings {
    GuestSettings {
        address: guest.address.clone(),
        port: guest.port,
        user: guest.user.clone(),
        key_file: guest.key_file.clone(),
        host_key: guest.host_key.clone(),
    }
}

fn manager_settings(section: &ManagerSection) -> ManagerSettings {
    ManagerSettings {
        address: section.host.clone(),
        port: section.port,
        user: section.user.clone(),
        host_key: section.host_key.clone(),
        name: section.name.clone(),
        work_dir: section.work_dir.trim_end_matches('/').to_owned(),
        program: section.program.clone(),
    }
}

/// The private keys that were given.
pub fn identities(arg: &IdentityArg) -> Result<Option<Identities>, CliError> {
    arg.identity.as_deref().map(read_identities).transpose()
}

/// The worker that is pushed: `$HVBAK_WORKER`, the configured one, the RPM's, or one beside
/// this program.
fn find_worker(config: &Config) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("HVBAK_WORKER") {
        return Some(path.into());
    }
    if let Some(path) = &config.worker.path {
        return Some(path.clone());
    }
    let beside = std::env::current_exe().ok().and_then(|exe| {
        let dir = exe.parent()?;
        Some(dir.join("hvbak-worker"))
    });
    [Some(PathBuf::from("/usr/libexec/hvbak/hvbak-worker")), beside]
        .into_iter()
        .flatten()
        .find(|path| path.is_file())
}

/// The first names of a long list for people.
pub fn some_of(names: &[String]) -> String {
    const SHOWN: usize = 20;
    let first: Vec<_> = names.iter().take(SHOWN).map(String::as_str).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

/// Names the operation that a repository call belongs to.
pub fn repo_error(doing: &'static str) -> impl FnOnce(hvbak_repo::Error) -> RunError {
    move |cause| RunError::Repository { doing: doing.into(), cause }
}
