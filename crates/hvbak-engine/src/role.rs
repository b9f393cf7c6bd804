//! What the account may do, and what it has to: the permits of a role that is enough.
//!
//! Names and numbers are those of the engine's `ActionGroup` (ovirt-engine, 4.2 to 4.5), which
//! `POST /roles` takes by number. Invariant: nothing is asked for that no request of ours needs.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::{
    client::{Engine, Request},
    error::EngineError,
    xml::Element,
};

/// What a permit is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Need {
    /// Every command.
    Login,
    Backup,
    Restore,
    /// A restore that makes a template.
    Templates,
    /// `engine_event` of `[notify]`, and events of running backups.
    Events,
}

/// One permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Permit {
    pub id: u32,
    pub name: &'static str,
    pub need: Need,
    /// What is done with it.
    pub why: &'static str,
}

const fn permit(id: u32, name: &'static str, need: Need, why: &'static str) -> Permit {
    Permit { id, name, need, why }
}

/// The least role.
pub const PERMITS: &[Permit] = &[
    permit(1300, "login", Need::Login, "every login"),
    permit(12, "manipulate_vm_snapshots", Need::Backup, "snapshots of VMs"),
    permit(10, "configure_vm_storage", Need::Backup, "freezing guests; attaching restored disks"),
    permit(1, "create_vm", Need::Restore, "the restored VM"),
    permit(
        8,
        "import_export_vm",
        Need::Restore,
        "a VM from its stored OVF; counts on the system only",
    ),
    permit(14, "change_vm_custom_properties", Need::Restore, "OVFs with custom properties"),
    permit(3, "edit_vm_properties", Need::Restore, "the restored VM's description and name"),
    permit(2, "delete_vm", Need::Restore, "undoing a restore that failed; `--overwrite`"),
    permit(22, "run_vm", Need::Restore, "`--power-on`"),
    permit(9, "configure_vm_network", Need::Restore, "NICs"),
    permit(1100, "create_disk", Need::Restore, "restored disks"),
    permit(1101, "attach_disk", Need::Restore, "attaching them"),
    permit(1102, "edit_disk_properties", Need::Restore, "their descriptions"),
    permit(1104, "delete_disk", Need::Restore, "undoing a restore that failed"),
    permit(1563, "attach_disk_profile", Need::Restore, "disks where profiles are restricted"),
    permit(901, "consume_quota", Need::Restore, "disks where a quota is enforced"),
    permit(1301, "tag_management", Need::Restore, "the restored VM's tags"),
    permit(200, "create_template", Need::Templates, "a template from a restored VM"),
    permit(201, "edit_template_properties", Need::Templates, "the template's description"),
    permit(202, "delete_template", Need::Templates, "undoing a restore that failed"),
    permit(1400, "inject_external_events", Need::Events, "events in the engine"),
];

/// What an account has been given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rights {
    /// The engine's id of the account.
    pub user: String,
    /// Names of permits that count everywhere.
    pub permits: BTreeSet<String>,
    /// One of its roles is of the kind for administrators, without which little is shown.
    pub administrative: bool,
    /// Roles that count on some object only.
    pub elsewhere: usize,
}

/// An object that a permission is for; without one it is for the system.
const OBJECTS: &[&str] =
    &["vm", "vm_pool", "template", "cluster", "data_center", "host", "storage_domain", "disk"];

impl Engine {
    /// The rights of the account that is logged in, also those of its groups as far as the
    /// engine lists them with the user's.
    ///
    /// # Errors
    /// As any request; `NotFound` of an engine that does not say who is logged in.
    pub async fn own_rights(&self) -> Result<Rights, EngineError> {
        let root = self.element("", "reading who is logged in").await?;
        let id: Option<String> = root.id("authenticated_user");
        let Some(user) = id else {
            let (what, correlation) = ("the account that is logged in".into(), String::new());
            return Err(EngineError::NotFound { what, correlation });
        };
        let path = format!("/users/{user}/permissions");
        let list = self.element(&path, "reading the account's permissions").await?;
        let mut rights = Rights { user, ..Rights::default() };
        let mut seen = BTreeSet::new();
        for permission in list.all("permission") {
            if OBJECTS.iter().any(|name| permission.child(name).is_some()) {
                rights.elsewhere += 1;
                continue;
            }
            let Some(role) = permission.id::<String>("role").filter(|id| seen.insert(id.clone()))
            else {
                continue;
            };
            let about = self.element(&format!("/roles/{role}"), "reading a role").await?;
            rights.administrative |= about.flag("administrative") == Some(true);
            let permits = self.element(&format!("/roles/{role}/permits"), "reading a role").await?;
            rights.permits.extend(permits.all("permit").filter_map(|p| p.string("name")));
        }
        Ok(rights)
    }

    async fn element(&self, path: &str, what: &str) -> Result<Element, EngineError> {
        self.send(Request::get(path, what)).await?.element()
    }
}
