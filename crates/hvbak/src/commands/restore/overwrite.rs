//! `hvbak restore --overwrite`: the VM that the point came from is replaced.
//!
//! Invariant: nothing is begun before the name of the VM that will be deleted was typed, here or
//! after `--confirm`. What an earlier call has left half-way is ended first, which deletes nothing.

use std::io::IsTerminal;

use hvbak_plan::{RestoreOptions, RestorePlan, plan_restore, replaced_vm};
use serde_json::json;

use super::{Outcome, Work};
use crate::{
    cli::RestoreArgs,
    commands::hosted_engine_walk::read_line,
    exit::{CliError, DONE, PARTLY, WAITING},
};

/// What somebody has said.
enum Said {
    Yes,
    /// There is nobody to be asked.
    Nothing,
}

impl Work<'_> {
    pub(super) async fn overwrite(&self, args: &RestoreArgs) -> Outcome {
        let (context, face) = (self.context, self.face);
        let selector = args.points.first().map(String::as_str).unwrap_or_default();
        let point = hvbak_run::find_point(&context.repository, selector).await?;
        super::meant(args, &point)?;
        let facts = hvbak_run::point_facts(&context.repository, &point)?;
        if !args.dry_run
            && let Some(done) = hvbak_run::end_replacement(context, facts.vm).await?
        {
            let name = &done.old.name;
            if done.point != *point.id() {
                return Err(CliError::Usage {
                    text: format!(
                        "VM `{name}` was replaced from point {}: an earlier restore is ended now; nothing was done of {selector}",
                        done.point
                    ),
                    hint: Some(
                        "look at it; the new VM has an id of its own, and no points yet".into(),
                    ),
                });
            }
            let not_started = args.power_on.then_some("it was restored by an earlier call");
            face.printer
                .data(&format!("VM {name} restored as {}, begun by an earlier call", done.new));
            let code = if args.power_on { PARTLY } else { DONE };
            return Ok((
                code,
                json!({ "vm": done.new, "name": name, "replaced": done.old.vm, "not_started": not_started }),
            ));
        }
        let inventory = hvbak_run::inventory_for_restore(context).await?;
        let id = replaced_vm(&inventory, &facts)?;
        let old = hvbak_run::old_vm(context, &inventory, id).await?;
        let options = RestoreOptions { overwrite: Some(old), ..self.typed.clone() };
        let plan = plan_restore(&inventory, &facts, &options)?;
        if args.dry_run {
            self.explain(&plan);
            return Ok((DONE, json!({ "dry_run": true })));
        }
        let name = &plan.name;
        match self.confirmed(args, &plan).await? {
            Said::Yes => {}
            Said::Nothing => {
                face.printer.say(&format!(
                    "nothing was begun; again with `--confirm '{name}'` to delete and replace it"
                ));
                return Ok((WAITING, json!({ "waiting": "confirm", "name": name, "vm": id })));
            }
        }
        let mut done = self.restore(context, &inventory, &point, &plan).await?;
        face.printer.say(&format!(
            "VM {name} has a new id: its next backup is full; change policies, maps and permissions that name {id}"
        ));
        done["replaced"] = json!(id);
        let code = if super::is_whole(&done) { DONE } else { PARTLY };
        Ok((code, done))
    }

    /// Whether the name of the VM that goes was said.
    async fn confirmed(&self, args: &RestoreArgs, plan: &RestorePlan) -> Result<Said, CliError> {
        let (name, face) = (&plan.name, self.face);
        let differs = |said: &str| CliError::Usage {
            text: format!(
                "`{said}` is not `{name}`, the VM that would be deleted; nothing was begun"
            ),
            hint: Some("see what would be deleted with `--dry-run`".into()),
        };
        if let Some(said) = &args.confirm {
            return if said == name { Ok(Said::Yes) } else { Err(differs(said)) };
        }
        self.explain(plan);
        if face.printer.json || !std::io::stdin().is_terminal() {
            return Ok(Said::Nothing);
        }
        face.printer.ask(&format!("To delete VM {name} and replace it, type its name:"));
        let line = tokio::select! {
            line = read_line() => line,
            () = self.context.cancel.cancelled() => return Err(hvbak_run::RunError::Cancelled.into()),
        };
        match line.as_deref().map(str::trim) {
            None => Ok(Said::Nothing),
            Some(said) if said == name => Ok(Said::Yes),
            Some(said) => Err(differs(said)),
        }
    }
}
