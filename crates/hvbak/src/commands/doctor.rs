//! `hvbak doctor`.

use hvbak_run::Health;
use serde_json::json;

use super::{Face, Outcome};
use crate::{
    exit::{DONE, FAILED},
    policy::{protecting, selections},
};

pub async fn run(face: &Face) -> Outcome {
    let policies = face.config()?.policies;
    let wishes = hvbak_run::DoctorWishes {
        policies: selections(&policies),
        protecting: protecting(&policies),
        templates: policies
            .iter()
            .map(|(name, policy)| (name.clone(), policy.save_templates.clone()))
            .collect(),
    };
    let context = face.context().await?;
    let checks = hvbak_run::doctor(&context, &wishes, |check| {
        face.printer.record("check", check);
        let sign = match check.health {
            Health::Ok => "ok     ",
            Health::Warning => "warning",
            Health::Failed => "FAILED ",
        };
        face.printer.data(&format!("{sign} {}: {}", check.what, check.text));
        if let Some(remedy) = &check.remedy {
            face.printer.data(&format!("        remedy: {remedy}"));
        }
    })
    .await;
    context.engine.logout().await;
    // Half a look is no pass.
    if face.cancel.is_cancelled() {
        return Err(hvbak_run::RunError::Cancelled.into());
    }
    let count = |health| checks.iter().filter(|c| c.health == health).count();
    let failed = count(Health::Failed);
    let code = if failed == 0 { DONE } else { FAILED };
    Ok((
        code,
        json!({ "ok": count(Health::Ok), "warnings": count(Health::Warning), "failed": failed }),
    ))
}
