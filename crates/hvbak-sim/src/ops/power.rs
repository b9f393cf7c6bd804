//! Power: a VM that runs is a daemon with its disks open.

use std::{
    sync::{Arc, PoisonError},
    thread,
};

use uuid::Uuid;

use super::{conflict, is_running};
use crate::{
    fault::Refusal,
    model::{Lab, State},
    qsd::Running,
};

/// Starts a VM's daemon; done when it returns.
pub fn start(lab: &Arc<Lab>, vm: Uuid) -> Result<(), Refusal> {
    let mut s = lab.state();
    let v = s.vm(vm).ok_or(Refusal::NotFound)?.clone();
    if is_running(&v.status) {
        return Err(conflict("Cannot run VM. VM is running."));
    }
    if !["down", "suspended"].contains(&v.status.as_str()) {
        return Err(conflict("Cannot run VM. VM is locked. Please try again in a few minutes."));
    }
    if v.snapshots.iter().any(|x| x.status == "locked") {
        return Err(conflict("Cannot run VM. VM is locked. Please try again in a few minutes."));
    }
    let disks: Vec<_> =
        v.attachments.iter().filter(|a| a.active).filter_map(|a| s.guest_disk(a.disk)).collect();
    let center = s.clusters.iter().find(|c| c.id == v.cluster).map(|c| c.data_center);
    let fit = s.hosts.iter().filter(|h| {
        h.status == "up"
            && s.clusters.iter().any(|c| c.id == h.cluster && Some(c.data_center) == center)
    });
    // On real LVM beside the pool's manager, so that two hosts have the LVs at once.
    let block = disks.iter().any(|d| d.domain.lun.is_some());
    let host = fit.min_by_key(|h| block && h.spm);
    let Some((host, name)) = host.map(|h| (h.id, h.name.clone())) else {
        return Err(conflict(
            "Cannot run VM. There is no host that satisfies current scheduling constraints.",
        ));
    };
    set_status(&mut s, vm, "powering_up", Some(host));
    drop(s);
    let lab = lab.clone();
    thread::spawn(move || {
        thread::sleep(lab.delay);
        let started = Running::start(&lab.vm_dir(vm), &name, &disks);
        let mut daemon = v.running.lock().unwrap_or_else(PoisonError::into_inner);
        let mut s = lab.state();
        match started {
            Ok(running) => {
                *daemon = Some(running);
                s.event(32, "normal", format!("VM {} started", v.name), "", Some(vm));
                set_status(&mut s, vm, "up", Some(host));
            }
            Err(error) => {
                tracing::warn!("starting {}: {error:#}", v.name);
                s.event(
                    119,
                    "error",
                    format!("VM {} is down with error. Exit message: {error:#}.", v.name),
                    "",
                    Some(vm),
                );
                set_status(&mut s, vm, "down", None);
            }
        }
    });
    Ok(())
}

/// Powers a VM off.
pub fn stop(lab: &Arc<Lab>, vm: Uuid) -> Result<(), Refusal> {
    close(lab, vm, "stop", "down")
}

/// Suspends a VM. Its memory is not kept: it comes back as if the power had failed.
pub fn suspend(lab: &Arc<Lab>, vm: Uuid) -> Result<(), Refusal> {
    close(lab, vm, "suspend", "suspended")
}

fn close(lab: &Arc<Lab>, vm: Uuid, verb: &str, end: &'static str) -> Result<(), Refusal> {
    let mut s = lab.state();
    let v = s.vm(vm).ok_or(Refusal::NotFound)?.clone();
    let asleep = v.status == "suspended" && end == "down";
    if !is_running(&v.status) && !asleep {
        return Err(conflict(format!("Cannot {verb} VM. VM is not running.")));
    }
    set_status(&mut s, vm, if end == "down" { "powering_down" } else { "saving_state" }, v.host);
    drop(s);
    let lab = lab.clone();
    thread::spawn(move || {
        let mut daemon = v.running.lock().unwrap_or_else(PoisonError::into_inner);
        *daemon = None;
        let mut s = lab.state();
        if end == "down" {
            s.event(33, "normal", format!("VM {} powered off", v.name), "", Some(vm));
        }
        set_status(&mut s, vm, end, None);
    });
    Ok(())
}

fn set_status(s: &mut State, vm: Uuid, status: &str, host: Option<Uuid>) {
    if let Some(v) = s.vm_mut(vm) {
        v.status = status.into();
        v.host = host;
    }
}
