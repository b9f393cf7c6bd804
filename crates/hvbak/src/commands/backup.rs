//! `hvbak backup`.

use std::sync::Arc;

use hvbak_plan::{BackupInput, Quiesce, Selection, Wish, explain_backup, plan_backup, select_vms};
use hvbak_run::Wishes;
use serde_json::json;

use super::{Face, Outcome};
use crate::{
    cli::{BackupArgs, LevelArg, QuiesceArg, SelectArgs},
    config::QuiesceSetting,
    exit::{DONE, FAILED, PARTLY},
};

pub async fn run(face: &Face, args: BackupArgs) -> Outcome {
    let quiesce = match (args.quiesce, face.config()?.backup.quiesce) {
        (Some(QuiesceArg::Auto), _) | (None, QuiesceSetting::Auto) => Quiesce::Auto,
        (Some(QuiesceArg::Require), _) | (None, QuiesceSetting::Require) => Quiesce::Require,
        (Some(QuiesceArg::Never), _) | (None, QuiesceSetting::Never) => Quiesce::Never,
    };
    let wish = match args.level {
        LevelArg::Auto => Wish::Auto,
        LevelArg::Full => Wish::Full,
        LevelArg::Incremental => Wish::Incremental,
        LevelArg::Differential => Wish::Differential,
    };
    let context = face.context().await?;
    let result = async {
        let own = hvbak_run::own_prefix(context.repository.id());
        let inventory = Arc::new(hvbak_run::inventory(&context).await?);
        let ids = select_vms(&inventory, &selection(&args.select))?;
        let ids = match args.max_age {
            Some(age) => hvbak_run::older_than(&context, &ids, age).await?,
            None => ids,
        };
        let vms = hvbak_run::vm_facts(&context, &ids).await?;
        let wishes = Arc::new(Wishes {
            quiesce,
            exclude_disks: args.exclude_disk.clone(),
            host: args.host.clone(),
            wish,
            own,
        });
        let plan = plan_backup(&BackupInput { vms: &vms, ..wishes.input(&inventory) });
        if args.dry_run {
            face.printer.data(&explain_backup(&plan));
            face.printer.record("plan", &plan);
            return Ok((DONE, json!({ "dry_run": true, "expected_bytes": plan.expected_bytes })));
        }
        let report = hvbak_run::backup(&context, &inventory, &plan, &wishes).await?;
        let code = match (report.done.len(), report.failed.len() + report.passing + report.left_behind.len()) {
            (_, 0) => DONE,
            (0, _) => report.single_exit().unwrap_or(FAILED),
            _ => PARTLY,
        };
        Ok((
            code,
            json!({ "job": context.job, "done": report.done, "failed": report.failed, "skipped": report.skipped, "left_behind": report.left_behind }),
        ))
    }
    .await;
    context.engine.logout().await;
    result
}

/// The typed selection as the plan wants it.
pub fn selection(args: &SelectArgs) -> Selection {
    Selection {
        names: args.vm.clone(),
        ids: args.id.clone(),
        globs: args.globs.clone(),
        tags: args.tag.clone(),
        clusters: args.cluster.clone(),
        data_centers: args.datacenter.clone(),
        all: args.all,
        exclude: args.exclude_vm.clone(),
    }
}
