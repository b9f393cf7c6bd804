//! Commands of a site around a backup: on this machine, or in the guest over SSH.
//!
//! No shell reads them here; in a guest they are quoted for its login shell. Invariants: what
//! runs after a snapshot runs whenever what stands before it was begun, also when that or the
//! snapshot failed or the run is being stopped; a command has an end, and so have its children.

use std::{
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hvbak_ssh::{Connection, HostTrust, Identity, Pin, Target, neutralise, sh_quote};
use nix::{sys::signal::Signal, unistd::Pid};
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::Command,
};

use crate::{
    error::{self, Result, RunError},
    hosts,
    job::Context,
    settings::GuestSettings,
};

/// Bytes of a command's output that are looked at.
const OUTPUT_MAX: usize = 64 << 10;

/// When a command runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HookMoment {
    /// Before the run.
    Before,
    /// Of each VM, just before its snapshot.
    BeforeSnapshot,
    /// Of each VM, as soon as its snapshot is there or has failed.
    AfterSnapshot,
    /// Of each VM, when its backup has ended.
    AfterVm,
    /// After the run.
    After,
}

impl HookMoment {
    /// Whether it comes once for each VM.
    pub fn is_of_vm(self) -> bool {
        !matches!(self, Self::Before | Self::After)
    }

    /// Whether a failure can still end what comes next.
    fn is_before(self) -> bool {
        matches!(self, Self::Before | Self::BeforeSnapshot)
    }

    fn word(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::BeforeSnapshot => "before-snapshot",
            Self::AfterSnapshot => "after-snapshot",
            Self::AfterVm => "after-vm",
            Self::After => "after",
        }
    }
}

impl std::fmt::Display for HookMoment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.word())
    }
}

/// One command.
#[derive(Debug, Clone)]
pub struct Hook {
    pub moment: HookMoment,
    /// Program and arguments.
    pub command: Vec<String>,
    pub in_guest: bool,
    pub timeout: Duration,
    /// Whether its failure fails what it stands before.
    pub required: bool,
}

/// All commands of a run.
#[derive(Debug, Clone, Default)]
pub struct Hooks {
    list: Vec<Hook>,
    failed: Arc<AtomicUsize>,
}

/// What a command is told, as environment variables.
#[derive(Debug, Clone, Default)]
pub struct Told(Vec<(&'static str, String)>);

impl Told {
    /// Adds a variable.
    pub fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.0.push((name, value.to_string()));
        self
    }
}

impl From<Vec<Hook>> for Hooks {
    fn from(list: Vec<Hook>) -> Self {
        Self { list, failed: Arc::default() }
    }
}

impl Hooks {
    /// How many commands have failed without failing anything else.
    pub fn failed(&self) -> usize {
        self.failed.load(Ordering::Relaxed)
    }

    /// Runs those of a moment, one after the other. `vm` is the VM's name.
    ///
    /// # Errors
    /// A required one failed before what it stands before; the ones behind it did not run.
    pub async fn run(
        &self,
        context: &Context,
        moment: HookMoment,
        vm: Option<&str>,
        told: &Told,
    ) -> Result<()> {
        for hook in self.list.iter().filter(|hook| hook.moment == moment) {
            let program = hook.command.first().map_or("", String::as_str);
            let place = match (hook.in_guest, vm) {
                (true, Some(vm)) => format!("in guest {vm}"),
                _ => "on this machine".to_owned(),
            };
            context.phase(None, format!("{moment}: running {program} {place}"));
            let told = told.clone().with("HVBAK_MOMENT", moment).with("HVBAK_JOB", context.job);
            let result = match (hook.in_guest, vm) {
                (true, Some(vm)) => in_guest(context, hook, vm, &told).await,
                _ => here(context, hook, &told).await,
            };
            let (why, hint) = match result {
                Ok(None) => continue,
                Ok(Some(why)) => (why, None),
                Err(RunError::Cancelled) if moment.is_before() => return Err(RunError::Cancelled),
                Err(cause) => (crate::chain(&cause), cause.hint()),
            };
            let failed = RunError::Hook { moment, program: program.to_owned(), place, why, hint };
            if hook.required && moment.is_before() {
                return Err(failed);
            }
            self.failed.fetch_add(1, Ordering::Relaxed);
            context.warn(None, crate::chain(&failed));
        }
        Ok(())
    }
}

/// Waits for the run to be stopped, where that ends a command.
async fn stopped(context: &Context, moment: HookMoment) {
    if moment.is_before() {
        context.cancel.cancelled().await;
    } else {
        std::future::pending::<()>().await;
    }
}

fn ended(code: Option<i32>, output: &[u8]) -> Option<String> {
    if code == Some(0) {
        return None;
    }
    let how = code.map_or_else(|| "it was killed".into(), |code| format!("it ended with {code}"));
    let text = neutralise(output);
    let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("").trim();
    Some(if last.is_empty() { how } else { format!("{how}: {last}") })
}

/// The end of what a pipe brings.
async fn last(pipe: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let (mut kept, mut part) = (Vec::new(), vec![0; 8 << 10]);
    let Some(mut pipe) = pipe else { return kept };
    while let Ok(n @ 1..) = pipe.read(&mut part).await {
        kept.extend_from_slice(part.get(..n).unwrap_or_default());
        let old = kept.len().saturating_sub(OUTPUT_MAX);
        kept.drain(..old);
    }
    kept
}

/// Runs one on this machine, in a process group of its own; `None`: it ended with 0.
async fn here(context: &Context, hook: &Hook, told: &Told) -> Result<Option<String>> {
    let Some((program, args)) = hook.command.split_first() else { return Ok(None) };
    let mut command = Command::new(program);
    command.args(args).envs(told.0.iter().map(|(name, value)| (*name, value)));
    // Credentials of this service are not the command's business.
    command.env_remove("CREDENTIALS_DIRECTORY").env_remove("NOTIFY_SOCKET");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let doing = || format!("run {program}");
    let mut child = command.spawn().map_err(|cause| RunError::Local { doing: doing(), cause })?;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (said, heard) = (tokio::spawn(last(stdout)), tokio::spawn(last(stderr)));
    let end = tokio::select! {
        status = child.wait() => {
            let status = status.map_err(|cause| RunError::Local { doing: doing(), cause })?;
            // A child that it leaves behind may hold the pipes for ever.
            let both = async { [said.await, heard.await] };
            let both = tokio::time::timeout(Duration::from_millis(500), both).await;
            let words = both.into_iter().flatten().flatten().flatten().collect::<Vec<u8>>();
            return Ok(ended(status.code(), &words));
        }
        () = tokio::time::sleep(hook.timeout) => {
            Ok(Some(format!("it did not end within {} s", hook.timeout.as_secs())))
        }
        () = stopped(context, hook.moment) => Err(RunError::Cancelled),
    };
    if let Some(group) = group {
        // Its children, too; that the group is gone already is as good.
        let _ = nix::sys::signal::killpg(group, Signal::SIGKILL);
    }
    end
}

/// Runs one in a VM's guest over SSH; `None`: it ended with 0.
async fn in_guest(context: &Context, hook: &Hook, vm: &str, told: &Told) -> Result<Option<String>> {
    let target = guest(context, vm)?;
    let words = told.0.iter().map(|(name, value)| format!("{name}={}", sh_quote(value)));
    let command = hook.command.iter().map(|word| sh_quote(word));
    let line = ["env".to_owned()].into_iter().chain(words).chain(command);
    let line = line.collect::<Vec<_>>().join(" ");
    let run = async {
        let connection = Connection::connect(&target).await?;
        let output = connection.exec_within(&line, Vec::new(), hook.timeout).await;
        connection.close().await;
        output
    };
    let output = tokio::select! {
        output = run => output.map_err(error::ssh(vm, "run a command in its guest"))?,
        () = stopped(context, hook.moment) => return Err(RunError::Cancelled),
    };
    if output.status.success() {
        return Ok(None);
    }
    Ok(Some(format!("{}: {}", output.status, output.text().lines().last().unwrap_or("").trim())))
}

/// A guest is reached only where the configuration knows its key.
fn guest(context: &Context, vm: &str) -> Result<Target> {
    let settings = &context.settings;
    let unknown = || RunError::UnknownGuest { vm: vm.to_owned() };
    let GuestSettings { address, port, user, key_file, host_key } =
        settings.guests.get(vm).ok_or_else(unknown)?;
    let mut target = Target::new(vm, address, user);
    target.port = *port;
    let pin: Pin = host_key.parse().map_err(error::ssh(vm, "understand the guest's host key"))?;
    target.trust = HostTrust::Pinned(vec![pin]);
    let own = &settings.ssh;
    target.identity = vec![Identity::KeyFile {
        path: key_file.clone().unwrap_or_else(|| own.key_file.clone()),
        passphrase: own.passphrase.clone(),
    }];
    target.options = hosts::options(settings);
    Ok(target)
}
