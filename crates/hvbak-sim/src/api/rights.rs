//! Who may do what. Simulated: one account with one role on the system, which holds every permit
//! until a test takes some away; checked are the requests that change something.

use uuid::Uuid;

use super::{Reply, Request, uuid};
use crate::{fault::Refusal, model::Lab, xml::X};

/// The one account and its role.
pub const USER: Uuid = Uuid::from_u128(0x58ca604b_01e0_4c4e_a61b_8e2b0f7c0001);
const ROLE: Uuid = Uuid::from_u128(0x58ca604b_01e0_4c4e_a61b_8e2b0f7c0002);

/// Numbers of the engine's permits, as `/roles/{id}/permits` shows them.
const KNOWN: &[(u32, &str)] = &[
    (1, "create_vm"),
    (2, "delete_vm"),
    (3, "edit_vm_properties"),
    (8, "import_export_vm"),
    (9, "configure_vm_network"),
    (10, "configure_vm_storage"),
    (12, "manipulate_vm_snapshots"),
    (14, "change_vm_custom_properties"),
    (18, "stop_vm"),
    (19, "shut_down_vm"),
    (22, "run_vm"),
    (200, "create_template"),
    (201, "edit_template_properties"),
    (202, "delete_template"),
    (901, "consume_quota"),
    (1100, "create_disk"),
    (1101, "attach_disk"),
    (1102, "edit_disk_properties"),
    (1104, "delete_disk"),
    (1300, "login"),
    (1301, "tag_management"),
    (1400, "inject_external_events"),
    (1563, "attach_disk_profile"),
];

/// The permits that a request needs (engine's commands; `run_vm` and the like by action).
fn needed(method: &str, parts: &[&str]) -> &'static [&'static str] {
    match (method, parts) {
        ("POST", ["vms"]) => &["create_vm", "import_export_vm"],
        ("PUT", ["vms", _]) => &["edit_vm_properties"],
        ("DELETE", ["vms", _]) => &["delete_vm"],
        ("POST", ["vms", _, "start"]) => &["run_vm"],
        ("POST", ["vms", _, "stop"]) => &["stop_vm"],
        ("POST", ["vms", _, "shutdown"]) => &["shut_down_vm"],
        ("POST", ["vms", _, "freezefilesystems" | "thawfilesystems"]) => &["configure_vm_storage"],
        ("POST" | "DELETE", ["vms", _, "snapshots", ..]) => &["manipulate_vm_snapshots"],
        ("POST", ["vms", _, "diskattachments"]) => &["configure_vm_storage", "attach_disk"],
        ("PUT" | "DELETE", ["vms", _, "diskattachments", _]) => &["configure_vm_storage"],
        ("POST" | "PUT" | "DELETE", ["vms", _, "nics", ..]) => &["configure_vm_network"],
        ("POST" | "DELETE", ["vms", _, "tags", ..]) => &["tag_management"],
        ("POST", ["templates"]) => &["create_template"],
        ("PUT", ["templates", _]) => &["edit_template_properties"],
        ("DELETE", ["templates", _]) => &["delete_template"],
        ("POST", ["disks"]) => &["create_disk"],
        ("PUT", ["disks", _]) => &["edit_disk_properties"],
        ("DELETE", ["disks", _]) => &["delete_disk"],
        ("POST", ["events"]) => &["inject_external_events"],
        _ => &[],
    }
}

/// Refuses what the role does not hold.
pub fn check(lab: &Lab, method: &str, parts: &[&str]) -> Result<(), Refusal> {
    let s = lab.state();
    let Some(held) = &s.permits else { return Ok(()) };
    match needed(method, parts).iter().find(|name| !held.contains(**name)) {
        None => Ok(()),
        Some(_) => {
            let detail = "User is not authorized to perform this action.";
            Err(Refusal::Fault(403, "Operation Failed", detail.into()))
        }
    }
}

/// `/users`, `/roles`.
pub fn get(lab: &Lab, parts: &[&str]) -> Reply {
    let held = lab.state().permits.clone();
    match parts {
        ["users", id, "permissions"] if uuid(id)? == USER => {
            let role = X::default().r("role", "roles", ROLE).r("user", "users", USER);
            let attributes = format!(" id=\"{}\"", Uuid::from_u128(USER.as_u128() + 9));
            Ok((200, X::list("permissions", [X::default().n("permission", &attributes, role)])))
        }
        ["roles", id] if uuid(id)? == ROLE => {
            let role = X::default().t("name", "hvbak").t("administrative", true);
            Ok((200, X::default().n("role", &format!(" id=\"{ROLE}\""), role)))
        }
        ["roles", id, "permits"] if uuid(id)? == ROLE => {
            let shown = KNOWN
                .iter()
                .filter(|(_, name)| held.as_ref().is_none_or(|held| held.contains(*name)));
            let one = |(id, name): &(u32, &str)| {
                X::default().n("permit", &format!(" id=\"{id}\""), X::default().t("name", name))
            };
            Ok((200, X::list("permits", shown.map(one))))
        }
        _ => Err(Refusal::NotFound),
    }
}

/// Whether the request is for this room.
pub fn is_mine(q: &Request, parts: &[&str]) -> bool {
    q.method == "GET" && matches!(parts, ["users" | "roles", ..])
}
