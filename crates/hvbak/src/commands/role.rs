//! `hvbak role`: the least role of hvbak's account, as calls of the API, and whether it holds.

use comfy_table::{Table, presets::NOTHING};
use hvbak_engine::{Need, PERMITS, Permit};
use hvbak_run::RunError;
use serde_json::json;

use super::{Face, Outcome};
use crate::{
    cli::{RoleArgs, RoleCommand, RoleFor},
    exit::{CliError, DONE, PARTLY},
};

pub async fn run(face: &Face, args: RoleArgs) -> Outcome {
    match args.command {
        RoleCommand::Print { what } => print(face, &wanted(&what)),
        RoleCommand::Check { what } => check(face, &wanted(&what)).await,
    }
}

/// The permits for what hvbak is to do; without a word all but templates and events.
fn wanted(what: &[RoleFor]) -> Vec<&'static Permit> {
    let what = if what.is_empty() { &[RoleFor::Backup, RoleFor::Restore][..] } else { what };
    // A template is made from a restored VM.
    let restores = [RoleFor::Restore, RoleFor::Templates].iter().any(|word| what.contains(word));
    let is = |permit: &&Permit| match permit.need {
        Need::Login => true,
        // A restore attaches disks, too.
        Need::Backup => what.contains(&RoleFor::Backup) || restores,
        Need::Restore => restores,
        Need::Templates => what.contains(&RoleFor::Templates),
        Need::Events => what.contains(&RoleFor::Events),
    };
    PERMITS.iter().filter(is).collect()
}

/// Needs no engine, and no configuration: there may be no account yet.
fn print(face: &Face, permits: &[&Permit]) -> Outcome {
    let config = face.config().ok();
    let url = config.as_ref().map_or("https://ENGINE/ovirt-engine/api", |c| c.engine.url.as_str());
    let ca = config.as_ref().and_then(|c| c.engine.ca_file.as_ref());
    let ca = ca.map_or_else(|| "ca.pem".into(), |path| path.display().to_string());
    permits.iter().for_each(|permit| face.printer.record("permit", permit));
    face.printer.data(&script(url, &ca, permits));
    Ok((DONE, json!({ "permits": permits.len() })))
}

fn script(url: &str, ca: &str, permits: &[&Permit]) -> String {
    let quoted = |text: &str| {
        shlex::try_quote(text).map_or_else(|_| "''".into(), std::borrow::Cow::into_owned)
    };
    let (url, ca) = (quoted(url), quoted(ca));
    let mut list = String::new();
    for permit in permits {
        list += &format!(
            "    <permit id=\"{}\"/> <!-- {}: {} -->\n",
            permit.id, permit.name, permit.why
        );
    }
    format!(
        r#"# The account, on the manager as root (it asks for the password):
#   ovirt-aaa-jdbc-tool user add hvbak
#   ovirt-aaa-jdbc-tool user password-reset hvbak --password-valid-to='2099-01-01 00:00:00Z'
# With Keycloak: made there, and `internalkeycloak-authz` below. The rest runs anywhere; each
# call asks for the administrator's password.
API={url}
CA={ca}
ADMIN=admin@internal
call() {{
  curl --fail --silent --show-error --cacert "$CA" --user "$ADMIN" \
    --header 'Content-Type: application/xml' --header 'Accept: application/xml' "$@"
}}
call --data @- "$API/roles" <<'EOF'
<role>
  <name>hvbak</name>
  <description>What hvbak needs</description>
  <administrative>true</administrative>
  <permits>
{list}  </permits>
</role>
EOF
ACCOUNT=$(call --data @- "$API/users" <<'EOF' | sed -n 's/.*<user [^>]*id="\([^"]*\)".*/\1/p' | head -n 1
<user>
  <user_name>hvbak@internal-authz</user_name>
  <domain><name>internal-authz</name></domain>
</user>
EOF
)
call --data @- "$API/permissions" <<EOF
<permission><role><name>hvbak</name></role><user id="$ACCOUNT"/></permission>
EOF
# Then: engine.username = "hvbak@internal", and `hvbak role check`.
"#
    )
}

async fn check(face: &Face, permits: &[&Permit]) -> Outcome {
    let config = face.config()?;
    let engine = face.engine(&config).await?;
    let rights = engine.own_rights().await;
    engine.logout().await;
    let rights = rights.map_err(|cause| {
        let doing = "read the account's rights".into();
        CliError::from(RunError::Engine { doing, cause })
    })?;
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(["PERMIT", "", "FOR"]);
    let mut missing = Vec::new();
    for permit in permits {
        let held = rights.permits.contains(permit.name);
        face.printer.record(
            "permit",
            &json!({ "id": permit.id, "name": permit.name, "need": permit.need, "held": held }),
        );
        table.add_row([permit.name, if held { "ok" } else { "MISSING" }, permit.why]);
        if !held {
            missing.push(permit.name);
        }
    }
    face.printer.data(&table.to_string());
    let more: Vec<_> = rights
        .permits
        .iter()
        .filter(|name| !PERMITS.iter().any(|permit| permit.name == *name))
        .collect();
    if !rights.administrative {
        face.printer.say(
            "MISSING: none of its roles is one for administrators, so it sees only what it owns",
        );
    }
    if !more.is_empty() {
        face.printer.say(&format!("it may do {} things more than hvbak needs", more.len()));
    }
    if rights.elsewhere > 0 {
        face.printer.say(&format!(
            "{} roles that count on single objects only were not looked at",
            rights.elsewhere
        ));
    }
    if !missing.is_empty() {
        face.printer.say("make the role anew with `hvbak role print`, on the system");
    }
    let whole = missing.is_empty() && rights.administrative;
    Ok((
        if whole { DONE } else { PARTLY },
        json!({ "missing": missing, "more": more, "administrative": rights.administrative }),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_calls_hold_every_permit_and_no_secret() {
        let permits = wanted(&[]);
        let text = script("https://e/ovirt-engine/api", "/etc/hvbak/ca's.pem", &permits);
        assert!(text.contains("<permit id=\"12\"/> <!-- manipulate_vm_snapshots"), "{text}");
        assert!(text.contains("CA=\"/etc/hvbak/ca's.pem\""), "{text}");
        assert!(!text.contains("inject_external_events") && !text.contains("create_template"));
        assert_eq!(wanted(&[RoleFor::Templates]).len(), permits.len() + 3);
        assert!(wanted(&[RoleFor::Events]).len() == 2 && wanted(&[RoleFor::Backup]).len() == 3);
        let shell = std::process::Command::new("sh").args(["-n", "-c", &text]).status();
        assert!(shell.is_ok_and(|status| status.success()), "{text}");
    }
}
