//! Is everything that a backup needs in order? One finding per thing, with its remedy.

mod site;
mod storage;

use std::time::{Duration, Instant};

use hvbak_plan::Selection;
use hvbak_ssh::{Connection, probe};
use hvbak_types::{Host, HostStatus};
use serde::Serialize;

use crate::{
    gather, hosts,
    job::{Context, Job},
};

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    Ok,
    Warning,
    Failed,
}

/// One line of the doctor.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    pub what: String,
    pub health: Health,
    pub text: String,
    pub remedy: Option<String>,
}

impl Check {
    fn ok(what: impl Into<String>, text: impl Into<String>) -> Self {
        Self { what: what.into(), health: Health::Ok, text: text.into(), remedy: None }
    }

    fn bad(
        what: impl Into<String>,
        health: Health,
        text: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { what: what.into(), health, text: text.into(), remedy: Some(remedy.into()) }
    }
}

/// Clocks further apart than this make point ids and logs misleading.
const CLOCK_SKEW: u64 = 60;

/// What the policies of the configuration want.
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    /// Whom each policy selects.
    pub policies: Vec<(String, Selection)>,
    /// The same of those that store disks.
    pub protecting: Vec<(String, Selection)>,
    /// Templates that each stores: names, ids and patterns.
    pub templates: Vec<(String, Vec<String>)>,
}

/// Checks engine, account, repository, policies, manager and every host that is up with the
/// storage that it sees, telling each as it is known. Workers that are pushed for it go again.
pub async fn doctor(
    context: &Context,
    wishes: &Wishes,
    mut tell: impl FnMut(&Check),
) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut push = |check: Check| {
        tell(&check);
        checks.push(check);
    };
    let version = context.engine.version();
    push(Check::ok(
        "engine",
        format!("{} {} at {}", version.product, version.full, context.engine.origin()),
    ));
    push(site::permits(context).await);
    push(repository(context));
    let inventory = match gather::inventory(context).await {
        Ok(inventory) => inventory,
        Err(cause) => {
            let remedy = cause.hint().unwrap_or_default();
            push(Check::bad("inventory", Health::Failed, crate::chain(&cause), remedy));
            return checks;
        }
    };
    push(Check::ok(
        "inventory",
        format!(
            "{} VMs, {} hosts, {} storage domains",
            inventory.vms.len(),
            inventory.hosts.len(),
            inventory.storage_domains.len()
        ),
    ));
    site::policies(&inventory, wishes).into_iter().for_each(&mut push);
    push(leftovers(context));
    if !context.settings.ssh.key_file.exists() {
        push(Check::bad(
            "key",
            Health::Failed,
            format!("{} does not exist", context.settings.ssh.key_file.display()),
            "enrol the hosts with `hvbak enroll --all`",
        ));
        return checks;
    }
    if context.settings.worker.push && context.settings.worker.binary.is_none() {
        push(Check::bad(
            "worker",
            Health::Warning,
            "no worker binary to push",
            "install the hvbak-worker package here, or set worker.path",
        ));
    }
    site::manager(context).await.into_iter().for_each(&mut push);
    let job = match Job::start(context).await {
        Ok(job) => job,
        Err(cause) => {
            let remedy = cause.hint().unwrap_or_default();
            push(Check::bad("journal", Health::Failed, crate::chain(&cause), remedy));
            return checks;
        }
    };
    for host in &inventory.hosts {
        if context.cancel.is_cancelled() {
            break;
        }
        let check = tokio::select! {
            check = check_host(context, host) => check,
            // Nothing is on the host.
            () = context.cancel.cancelled() => break,
        };
        let reached = check.health == Health::Ok;
        push(check);
        if reached {
            storage::look(&job, &inventory, host).await.into_iter().for_each(&mut push);
        }
    }
    match job.end().await {
        Ok(left) => context.tell_left_behind(&left),
        Err(cause) => context.warn(None, crate::chain(&cause)),
    }
    checks
}

fn repository(context: &Context) -> Check {
    let repository = &context.repository;
    let what = "repository";
    match repository.free_bytes() {
        Err(cause) => {
            Check::bad(what, Health::Failed, crate::chain(&cause), "check its file system")
        }
        Ok(free) if free < context.settings.reserve => Check::bad(
            what,
            Health::Failed,
            format!("{} has {free} bytes free, less than its reserve", repository.path().display()),
            "free space, or lower repository.reserve_gib",
        ),
        Ok(free) => {
            Check::ok(what, format!("{}, {} GiB free", repository.path().display(), free >> 30))
        }
    }
}

fn leftovers(context: &Context) -> Check {
    match context.repository.open_journals() {
        Err(cause) => {
            Check::bad("journal", Health::Failed, crate::chain(&cause), "check the repository")
        }
        Ok(views) => {
            let dead = views.iter().filter(|v| !v.alive).count();
            if dead == 0 {
                Check::ok("journal", "nothing is left behind")
            } else {
                Check::bad(
                    "journal",
                    Health::Warning,
                    format!("{dead} runs that died or were cut left something behind"),
                    "`hvbak cleanup`; a transfer that was cut goes on with the VM's next backup",
                )
            }
        }
    }
}

async fn check_host(context: &Context, host: &Host) -> Check {
    let what = format!("host {}", host.name);
    if host.status != HostStatus::Up {
        let text = format!("is {}", host.status);
        return Check::bad(what, Health::Warning, text, "activate it in the engine to use it");
    }
    let failed = |cause: crate::RunError| {
        let remedy = cause.hint().unwrap_or_else(|| "`hvbak enroll`".into());
        Check::bad(what.clone(), Health::Failed, crate::chain(&cause), remedy)
    };
    let target = match hosts::target(&context.settings, host) {
        Ok(target) => target,
        Err(cause) => return failed(cause),
    };
    let started = Instant::now();
    let connection = match Connection::connect(&target).await {
        Ok(connection) => connection,
        Err(cause) => return failed(crate::error::ssh(&host.name, "log in")(cause)),
    };
    let took = started.elapsed();
    let info = probe(&connection).await;
    let cipher = connection.negotiated().cipher;
    connection.close().await;
    let info = match info {
        Ok(info) => info,
        Err(cause) => return failed(crate::error::ssh(&host.name, "look around")(cause)),
    };
    let now = jiff::Timestamp::now().as_second();
    let skew = now.abs_diff(info.clock).saturating_sub(took.as_secs());
    if skew > CLOCK_SKEW {
        let text = format!("its clock is {} from ours", humane(Duration::from_secs(skew)));
        return Check::bad(what, Health::Warning, text, "run a time service on both");
    }
    if !info.is_root() && info.host_root.is_empty() {
        return Check::bad(
            what,
            Health::Failed,
            format!("user {} is neither root nor may use sudo", info.user),
            "enrol it again with a root login, which writes the sudo rule",
        );
    }
    let worker = info.installed_worker.as_deref().unwrap_or("worker will be pushed");
    Check::ok(
        what,
        format!(
            "{}, {} {}, {cipher}, {worker}, login {} ms",
            info.os,
            info.arch,
            info.kernel,
            took.as_millis()
        ),
    )
}

fn humane(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds < 7200 { format!("{seconds} s") } else { format!("{} h", seconds / 3600) }
}
