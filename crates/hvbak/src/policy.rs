//! The sections `[policy.NAME]`: which VMs, how often in full, when, how long they are kept.
//!
//! Only what is written there, as the plan wants it. Invariant: a section that is not right
//! ends every command that reads the configuration, not the nightly run alone.

use std::collections::BTreeMap;

use hvbak_plan::{
    DiskRules, Picked, SelectError, Selection, Window, Wish, pick_templates, pick_vms,
};
use hvbak_run::{Hook, HookMoment};
use hvbak_types::Inventory;
use jiff::{SignedDuration, tz::TimeZone};
use serde::Deserialize;

use crate::config::{QuiesceSetting, RetentionSection};

/// All of them, by name.
pub type Policies = BTreeMap<String, PolicySection>;

/// `[policy.NAME]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicySection {
    pub vms: Vec<String>,
    pub ids: Vec<String>,
    #[serde(rename = "match")]
    pub globs: Vec<String>,
    pub regex: Vec<String>,
    pub tags: Vec<String>,
    pub clusters: Vec<String>,
    pub data_centers: Vec<String>,
    /// VMs that were made from them.
    pub templates: Vec<String>,
    /// Templates themselves, by name, id or shell pattern.
    pub save_templates: Vec<String>,
    pub all: bool,
    pub exclude_vms: Vec<String>,
    pub exclude_tags: Vec<String>,
    pub exclude_disks: Vec<String>,
    /// A VM with the tag PREFIX + ALIAS is stored without that disk.
    pub exclude_disk_tag: String,
    pub level: LevelSetting,
    /// Configurations alone are stored: no VM's data is protected by it.
    pub config_only: bool,
    /// A full after so many points, itself counted.
    pub full_every: Option<usize>,
    pub quiesce: Option<QuiesceSetting>,
    pub windows: Vec<String>,
    /// IANA name of the zone of the windows; this machine's without it.
    pub time_zone: Option<String>,
    pub limits: PolicyLimits,
    /// Instead of those of `[report]`.
    pub max_age: Option<SignedDuration>,
    pub max_verified_age: Option<SignedDuration>,
    pub retention: Option<RetentionSection>,
    pub commands: Vec<CommandSection>,
}

impl Default for PolicySection {
    fn default() -> Self {
        Self {
            vms: Vec::new(),
            ids: Vec::new(),
            globs: Vec::new(),
            regex: Vec::new(),
            tags: Vec::new(),
            clusters: Vec::new(),
            data_centers: Vec::new(),
            templates: Vec::new(),
            save_templates: Vec::new(),
            all: false,
            exclude_vms: Vec::new(),
            exclude_tags: Vec::new(),
            exclude_disks: Vec::new(),
            exclude_disk_tag: "hvbak-skip-".into(),
            level: LevelSetting::Incremental,
            config_only: false,
            full_every: None,
            quiesce: None,
            windows: Vec::new(),
            time_zone: None,
            limits: PolicyLimits::default(),
            max_age: None,
            max_verified_age: None,
            retention: None,
            commands: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum LevelSetting {
    Incremental,
    Differential,
    Full,
}

/// Instead of those of `[limits]`.
#[derive(Debug, Clone, Copy, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyLimits {
    pub vms: Option<usize>,
    pub vms_per_host: Option<usize>,
    pub vms_per_storage_domain: Option<usize>,
}

/// A command around the backup.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandSection {
    pub when: HookMoment,
    /// Program and arguments; no shell reads them.
    pub run: Vec<String>,
    /// In the guest, over SSH, instead of on this machine.
    #[serde(default)]
    pub in_guest: bool,
    #[serde(default = "default_timeout")]
    pub timeout_seconds: u64,
    /// Whether its failure fails what it stands before.
    #[serde(default = "yes")]
    pub required: bool,
}

fn default_timeout() -> u64 {
    300
}

fn yes() -> bool {
    true
}

/// What is wrong with a policy.
#[derive(Debug, thiserror::Error)]
#[error("policy `{name}`: {why}")]
pub struct PolicyError {
    name: String,
    why: String,
}

impl PolicySection {
    /// Which VMs.
    pub fn selection(&self) -> Selection {
        Selection {
            names: self.vms.clone(),
            ids: self.ids.clone(),
            globs: self.globs.clone(),
            regexes: self.regex.clone(),
            tags: self.tags.clone(),
            clusters: self.clusters.clone(),
            data_centers: self.data_centers.clone(),
            templates: self.templates.clone(),
            all: self.all,
            exclude: self.exclude_vms.clone(),
            exclude_tags: self.exclude_tags.clone(),
        }
    }

    /// The VMs that it means now; none where it speaks of templates alone.
    pub fn pick(&self, inventory: &Inventory) -> Result<Picked, SelectError> {
        let selection = self.selection();
        if !selection.names_vms() && !self.save_templates.is_empty() {
            return Ok(Picked::default());
        }
        pick_vms(inventory, &selection)
    }

    pub fn wish(&self) -> Wish {
        match self.level {
            LevelSetting::Incremental => Wish::Auto,
            LevelSetting::Differential => Wish::Differential,
            LevelSetting::Full => Wish::Full,
        }
    }

    pub fn hooks(&self) -> Vec<Hook> {
        let hook = |command: &CommandSection| Hook {
            moment: command.when,
            command: command.run.clone(),
            in_guest: command.in_guest,
            timeout: std::time::Duration::from_secs(command.timeout_seconds.max(1)),
            required: command.required,
        };
        self.commands.iter().map(hook).collect()
    }

    pub fn disk_rules(&self, name: &str) -> Result<DiskRules, PolicyError> {
        let tag = Some(self.exclude_disk_tag.clone());
        DiskRules::new(&self.exclude_disks, tag).map_err(error(name))
    }

    pub fn windows(&self, name: &str) -> Result<Vec<Window>, PolicyError> {
        self.windows.iter().map(|text| text.parse().map_err(error(name))).collect()
    }

    pub fn zone(&self, name: &str) -> Result<TimeZone, PolicyError> {
        match &self.time_zone {
            None => Ok(TimeZone::system()),
            Some(zone) => {
                let unknown = |_| format!("`time_zone` is no known time zone: {zone}");
                TimeZone::get(zone).map_err(unknown).map_err(error(name))
            }
        }
    }

    /// Whatever can be known to be wrong without a site.
    fn check(&self, name: &str) -> Result<(), PolicyError> {
        let wrong = |why: String| Err(error(name)(why));
        // It becomes an instance's name of systemd.
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
            return wrong("a name has up to 64 of A-Z a-z 0-9 . _ -".into());
        }
        if self.full_every == Some(0) {
            return wrong("`full_every` counts the full itself: at least 1".into());
        }
        if self.config_only && (self.full_every.is_some() || self.retention.is_some()) {
            return wrong("`config_only` has no fulls and keeps a number of its own".into());
        }
        if self.config_only && !self.save_templates.is_empty() {
            return wrong("`config_only` stores no templates".into());
        }
        if self.config_only && !self.commands.is_empty() {
            return wrong(
                "`config_only` takes no snapshots that commands could stand around".into(),
            );
        }
        if self.commands.iter().any(|command| command.run.is_empty()) {
            return wrong("a command has no program in `run`".into());
        }
        let in_guest = |c: &&CommandSection| c.in_guest && !c.when.is_of_vm();
        if let Some(command) = self.commands.iter().find(in_guest) {
            return wrong(format!("a command {} belongs to no VM's guest", command.when));
        }
        if self.retention.as_ref().is_some_and(|rules| rules.time_zone.is_some()) {
            return wrong("`time_zone` of what is kept is set once, in [retention]".into());
        }
        let empty = Inventory::default();
        self.pick(&empty).map_err(error(name))?;
        pick_templates(&empty, &self.save_templates).map_err(error(name))?;
        self.disk_rules(name)?;
        self.windows(name)?;
        self.zone(name)?;
        Ok(())
    }
}

fn error<E: ToString>(name: &str) -> impl FnOnce(E) -> PolicyError {
    move |why| PolicyError { name: name.to_owned(), why: why.to_string() }
}

/// The selections of those that speak of VMs, by name.
pub fn selections(policies: &Policies) -> Vec<(String, Selection)> {
    let of_vms = policies.iter().filter(|(_, policy)| policy.selection().names_vms());
    of_vms.map(|(name, policy)| (name.clone(), policy.selection())).collect()
}

/// The same of those that store disks: a VM is protected by no other.
pub fn protecting(policies: &Policies) -> Vec<(String, Selection)> {
    let stores =
        policies.iter().filter(|(_, policy)| !policy.config_only && policy.selection().names_vms());
    stores.map(|(name, policy)| (name.clone(), policy.selection())).collect()
}

/// Checks all sections.
pub fn check(policies: &Policies) -> Result<(), PolicyError> {
    policies.iter().try_for_each(|(name, policy)| policy.check(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> Result<(), String> {
        let policy: PolicySection = toml::from_str(text).map_err(|e| e.to_string())?;
        policy.check("nightly").map_err(|e| e.to_string())
    }

    #[test]
    fn what_is_wrong_is_told_when_the_file_is_read() {
        let whole = "match = [\"web*\"]\nfull_every = 7\nwindows = [\"Mon-Fri 22:00-06:00\"]\n\
             commands = [{ when = \"before-snapshot\", run = [\"sync\"], in_guest = true }]\n";
        assert_eq!(checked(whole), Ok(()));
        for (text, says) in [
            ("level = \"full\"", "nothing is selected"),
            ("match = [\"a[\"]", "`a[` is not a valid pattern"),
            ("regex = [\"(\"]", "`(` is not a valid pattern"),
            ("all = true\nfull_every = 0", "at least 1"),
            ("all = true\nwindows = [\"22-6\"]", "`22-6` is no window"),
            ("all = true\ntime_zone = \"Moon\"", "Moon"),
            ("all = true\nretention = { daily = 7, time_zone = \"UTC\" }", "[retention]"),
            ("all = true\nexclude_disks = [\"a[\"]", "`a[`"),
            ("all = true\ncommands = [{ when = \"before\", run = [] }]", "no program"),
            (
                "all = true\ncommands = [{ when = \"after\", run = [\"x\"], in_guest = true }]",
                "no VM's guest",
            ),
            ("save_templates = [\"a[\"]", "`a[` is not a valid pattern"),
            ("all = true\nconfig_only = true\nfull_every = 7", "no fulls"),
            ("all = true\nconfig_only = true\nretention = { daily = 7 }", "of its own"),
            (
                "all = true\nconfig_only = true\ncommands = [{ when = \"after\", run = [\"x\"] }]",
                "no snapshots",
            ),
            ("al = true", "unknown field `al`"),
        ] {
            let error = checked(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
        assert_eq!(checked("save_templates = [\"golden-*\"]"), Ok(()));
        let named = PolicySection { all: true, ..PolicySection::default() };
        for name in ["", "a b", "../x", &"x".repeat(65)] {
            assert!(named.check(name).is_err(), "{name}");
        }
    }
}
