//! `hvbak restore`.

use hvbak_plan::{MacRule, RestoreFormat, RestoreOptions, explain_restore, plan_restore};
use serde_json::json;

use super::{Face, Outcome};
use crate::{
    cli::{DiskFormatArg, InterfaceArg, MacArg, NicArg, RestoreArgs},
    exit::{DONE, PARTLY},
};

pub async fn run(face: &Face, args: RestoreArgs) -> Outcome {
    let context = face.context().await?;
    let result = async {
        let point = hvbak_run::find_point(&context.repository, &args.point).await?;
        let facts = hvbak_run::point_facts(&context.repository, &point)?;
        let inventory = hvbak_run::inventory(&context).await?;
        let plan = plan_restore(&inventory, &facts, &options(&args))?;
        if args.dry_run {
            face.printer.data(&explain_restore(&plan));
            face.printer.record("plan", &plan);
            return Ok((DONE, json!({ "dry_run": true })));
        }
        let done = hvbak_run::restore(&context, &inventory, &point, &plan).await?;
        face.printer.data(&format!("VM {} restored as {}", plan.name, done.vm));
        let code = if done.not_started.is_some() { PARTLY } else { DONE };
        Ok((
            code,
            json!({
                "job": context.job, "vm": done.vm, "name": plan.name, "disks": done.disks,
                "not_started": done.not_started,
            }),
        ))
    }
    .await;
    context.engine.logout().await;
    result
}

fn options(args: &RestoreArgs) -> RestoreOptions {
    RestoreOptions {
        name: args.name.clone(),
        cluster: args.cluster.clone(),
        storage_domains: args.storage_domain.clone(),
        disks: args.disk.clone(),
        exclude_disks: args.exclude_disk.clone(),
        format: args.format.map(|f| match f {
            DiskFormatArg::RawSparse => RestoreFormat::RawSparse,
            DiskFormatArg::RawPreallocated => RestoreFormat::RawPreallocated,
            DiskFormatArg::Cow => RestoreFormat::Cow,
        }),
        interface: args.interface.map(|i| {
            match i {
                InterfaceArg::Virtio => "virtio",
                InterfaceArg::VirtioScsi => "virtio_scsi",
                InterfaceArg::Sata => "sata",
                InterfaceArg::Ide => "ide",
            }
            .to_owned()
        }),
        no_nics: args.nic == NicArg::None,
        mac: args.mac.map(|m| match m {
            MacArg::Keep => MacRule::Keep,
            MacArg::New => MacRule::New,
        }),
        disconnected: args.disconnected,
        power_on: args.power_on,
        host: args.host.clone(),
    }
}
