//! What the account may do, whom the policies mean, and how the manager is.

use hvbak_engine::{Need, PERMITS};
use hvbak_plan::{SelectError, assign_vms, pick_templates};
use hvbak_types::Inventory;

use super::{Check, Health, Wishes};
use crate::{job::Context, manager::Link};

/// The account's permits. Never worse than a warning: what an engine lists of a group's is not
/// known everywhere, and the calls themselves say what is refused.
pub(super) async fn permits(context: &Context) -> Check {
    let what = "account";
    let remedy =
        "`hvbak role check` tells what for, `hvbak role print` makes a role that is enough";
    let rights = match context.engine.own_rights().await {
        Ok(rights) => rights,
        Err(cause) => {
            let text = format!("its permits cannot be read: {}", crate::chain(&cause));
            return Check::bad(what, Health::Warning, text, remedy);
        }
    };
    let missing: Vec<_> = PERMITS
        .iter()
        .filter(|permit| matches!(permit.need, Need::Login | Need::Backup | Need::Restore))
        .filter(|permit| !rights.permits.contains(permit.name))
        .map(|permit| permit.name)
        .collect();
    if !rights.administrative {
        let text = "none of its roles is one for administrators, so it sees only what it owns";
        return Check::bad(what, Health::Warning, text, remedy);
    }
    if !missing.is_empty() {
        return Check::bad(what, Health::Warning, format!("lacks {}", missing.join(", ")), remedy);
    }
    Check::ok(what, "may do all that backups and restores need")
}

/// One line for all policies, and one for each that names what is not there.
pub(super) fn policies(inventory: &Inventory, wishes: &Wishes) -> Vec<Check> {
    let bad = |health, name: &str, cause: &SelectError| {
        let remedy = cause.hint().unwrap_or_default();
        Check::bad(format!("policy {name}"), health, cause.to_string(), remedy)
    };
    let both = (assign_vms(inventory, &wishes.policies), assign_vms(inventory, &wishes.protecting));
    let (named, all) = match both {
        (Ok(named), Ok(all)) => (named, all),
        (Err((name, cause)), _) | (_, Err((name, cause))) => {
            return vec![bad(Health::Failed, &name, &cause)];
        }
    };
    let mut missing = named.missing;
    for (name, texts) in wishes.templates.iter().filter(|(_, texts)| !texts.is_empty()) {
        match pick_templates(inventory, texts) {
            Ok(picked) => missing.extend(picked.missing.into_iter().map(|e| (name.clone(), e))),
            Err(cause) => missing.push((name.clone(), cause)),
        }
    }
    let mut checks: Vec<_> =
        missing.iter().map(|(name, cause)| bad(Health::Warning, name, cause)).collect();
    let policies = &wishes.protecting;
    if policies.is_empty() {
        return checks;
    }
    let unassigned: Vec<_> = all.unassigned().map(|vm| vm.name.as_str()).collect();
    checks.push(if unassigned.is_empty() {
        Check::ok(
            "policies",
            format!("{} that store disks, and every VM is in one", policies.len()),
        )
    } else {
        let first: Vec<_> = unassigned.iter().take(5).copied().collect();
        let more = unassigned.len() - first.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let text = format!("in none that stores disks: {}{more}", first.join(", "));
        Check::bad("policies", Health::Warning, text, "`hvbak policy test` shows who is in and why")
    });
    checks
}

/// The manager, where one is configured: login, rights, program, room, what earlier runs left.
pub(super) async fn manager(context: &Context) -> Option<Check> {
    let settings = context.settings.manager.as_ref()?;
    let what = format!("manager {}", settings.address);
    let looked = async {
        let mut link = Link::open(&context.settings, settings, &context.cancel).await?;
        let look = link.look(settings).await;
        link.close().await;
        look
    };
    let look = tokio::select! {
        look = looked => look,
        () = context.cancel.cancelled() => return None,
    };
    let bad =
        |health, text: String, remedy: &str| Some(Check::bad(what.clone(), health, text, remedy));
    let look = match look {
        Ok(look) => look,
        Err(cause) => {
            let remedy = cause.hint().unwrap_or_else(|| "`hvbak enroll --manager`".into());
            return bad(Health::Failed, crate::chain(&cause), &remedy);
        }
    };
    if !look.is_root {
        let text = format!("user {} is neither root nor may use sudo", settings.user);
        return bad(Health::Failed, text, "enrol it again with a root login");
    }
    if !look.missing_tools.is_empty() {
        let text = format!("has no {}", look.missing_tools.join(", "));
        return bad(Health::Failed, text, "install them there; a backup of the manager needs them");
    }
    // Dumps compress; the databases' own size is an upper bound of what they need.
    let needs = look.databases.values().fold(look.files, |sum, bytes| sum.saturating_add(*bytes));
    if look.free < needs {
        let text = format!(
            "{} has {} MiB free, and databases and files have up to {} MiB",
            settings.work_dir,
            look.free >> 20,
            needs >> 20
        );
        return bad(Health::Warning, text, "free space there, or set `work_dir` of [manager]");
    }
    let mine = context.repository.id().to_string();
    let left = look.runs.iter().filter(|run| run.owner == mine).count();
    if left > 0 {
        let text = format!("{left} runs lie in {}, at work or ended", settings.work_dir);
        let remedy = "the next `hvbak manager-backup` takes home what is whole; `hvbak cleanup` removes the rest";
        return bad(Health::Warning, text, remedy);
    }
    Some(Check::ok(what, format!("engine-backup {}, {} MiB free", look.version, look.free >> 20)))
}
