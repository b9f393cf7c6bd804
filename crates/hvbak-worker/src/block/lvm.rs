//! Running the host's LVM with a selection of devices of our own (hypervisor.md §11).
//!
//! Only reports and (de)activation are ever asked for: nothing here writes a group's
//! metadata. Invariant: a command sees the devices of one domain, or, to find these, the
//! multipath devices; never a guest's disks.

use std::{
    fs, io,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use hvbak_types::DomainId;
use hvbak_vdsm::{LVS_COLUMNS, LvmLine, VolumeGroup, lvm_config, lvm_line, parse_pvs};

use crate::{
    error::{Error, Result},
    host::Host,
};

/// About one report in a hundred meets a write of the pool's manager; vdsm repeats such
/// ones four times as well.
const REPORTS: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// LVM for one domain.
pub struct Lvm {
    program: PathBuf,
    config: String,
    domain: DomainId,
}

impl Lvm {
    /// Finds the program and the devices of a domain.
    ///
    /// # Errors
    /// No LVM, not root, or no multipath device of this host belongs to the domain.
    pub fn find(host: &Host, domain: DomainId) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            return Err(Error::NotRoot { domain });
        }
        let program = ["/usr/sbin/lvm", "/sbin/lvm"]
            .iter()
            .map(|path| host.path(path))
            .find(|path| path.exists())
            .ok_or_else(|| Error::lvm("find", domain, "there is no /usr/sbin/lvm on this host"))?;
        let mut lvm = Self { program, config: String::new(), domain };
        let version = lvm.run("ask for the version of", &["version"])?;
        let line = lvm_line(&version).ok_or_else(|| {
            let said = version.lines().next().unwrap_or_default();
            Error::lvm("use", domain, format!("its version is not known: {said}"))
        })?;
        lvm.select(line, &candidates(host, domain)?);
        let report = lvm.report("pvs", "pv_name,vg_name", None)?;
        let own = parse_pvs(domain, &report).map_err(|source| Error::LvmReport { source })?;
        if own.is_empty() {
            return Err(Error::NoDomain { domain: domain.to_string() });
        }
        lvm.select(line, &own);
        Ok(lvm)
    }

    fn select(&mut self, line: LvmLine, devices: &[String]) {
        self.config = lvm_config(line, devices);
    }

    /// Reads the domain's group anew from its devices.
    ///
    /// # Errors
    /// LVM failed, or a device of the group is missing.
    pub fn scan(&self) -> Result<VolumeGroup> {
        let json = self.report("lvs", LVS_COLUMNS, Some(&self.domain.to_string()))?;
        let group =
            VolumeGroup::parse(self.domain, &json).map_err(|source| Error::LvmReport { source })?;
        if group.missing_devices > 0 {
            let what = format!("{} of its devices are not on this host", group.missing_devices);
            return Err(Error::lvm("use", self.domain, what));
        }
        Ok(group)
    }

    fn report(&self, kind: &str, columns: &str, group: Option<&str>) -> Result<String> {
        let mut arguments =
            vec![kind, "--reportformat", "json", "--units", "b", "--nosuffix", "-o", columns];
        arguments.extend(group);
        let mut pause = FIRST_PAUSE;
        for _ in 1..REPORTS {
            if let Ok(report) = self.run("report", &arguments) {
                return Ok(report);
            }
            thread::sleep(pause);
            pause *= 2;
        }
        self.run("report", &arguments)
    }

    /// Makes LVs appear on this host.
    ///
    /// # Errors
    /// LVM refused.
    pub fn activate(&self, names: &[&str]) -> Result<()> {
        self.change("activate volumes of", "-ay", names)
    }

    /// Takes LVs away from this host. An LV that is open stays; that is an error too.
    ///
    /// # Errors
    /// LVM refused.
    pub fn deactivate(&self, names: &[&str]) -> Result<()> {
        self.change("deactivate volumes of", "-an", names)
    }

    /// Loads the present extents of an active LV.
    ///
    /// # Errors
    /// LVM refused.
    pub fn refresh(&self, name: &str) -> Result<()> {
        self.change("refresh a volume of", "--refresh", &[name])
    }

    fn change(&self, doing: &'static str, how: &str, names: &[&str]) -> Result<()> {
        let names: Vec<_> = names.iter().map(|name| format!("{}/{name}", self.domain)).collect();
        let mut arguments = vec!["lvchange", "--autobackup", "n", how];
        arguments.extend(names.iter().map(String::as_str));
        self.run(doing, &arguments).map(drop)
    }

    fn run(&self, doing: &'static str, arguments: &[&str]) -> Result<String> {
        let (verb, rest) = arguments.split_first().unwrap_or((&"version", &[]));
        let mut command = Command::new(&self.program);
        command.arg(verb);
        if !self.config.is_empty() {
            command.args(["--config", &self.config]);
        }
        let output = command
            .args(rest)
            .env("LC_ALL", "C")
            .env("LVM_SUPPRESS_FD_WARNINGS", "1")
            .stdin(Stdio::null())
            .output()
            .map_err(|e| Error::lvm(doing, self.domain, e.to_string()))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        // Warnings come first; the last line names the cause.
        let last = said.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("no word");
        Err(Error::lvm(doing, self.domain, format!("{}, {}", last.trim(), output.status)))
    }
}

/// Devices among which the domain's are looked for: what multipath made, and whatever the
/// domain's active LV `metadata` lies on (hosts whose LUNs have no multipath).
fn candidates(host: &Host, domain: DomainId) -> Result<Vec<String>> {
    let block = host.path("/sys/class/block");
    let text = |path: PathBuf| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let mut found = Vec::new();
    let entries = fs::read_dir(&block).map_err(Error::file("list", &block))?;
    let metadata = format!("{}-metadata", domain.to_string().replace('-', "--"));
    for device in entries.flatten().map(|entry| entry.path()) {
        let name = text(device.join("dm/name"));
        if text(device.join("dm/uuid")).starts_with("mpath-") {
            found.push(format!("/dev/mapper/{name}"));
        }
        if name == metadata {
            for below in fs::read_dir(device.join("slaves")).into_iter().flatten().flatten() {
                let dm = text(below.path().join("dm/name"));
                let plain = below.file_name().to_string_lossy().into_owned();
                let path = if dm.is_empty() { plain } else { format!("mapper/{dm}") };
                found.push(format!("/dev/{path}"));
            }
        }
    }
    found.sort();
    found.dedup();
    if found.is_empty() {
        let source = io::Error::new(io::ErrorKind::NotFound, "no multipath device on this host");
        return Err(Error::file("find the devices of", domain.to_string())(source));
    }
    Ok(found)
}
