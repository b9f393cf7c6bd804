//! `hvbak hosted-engine`: the engine's VM as its hosts see it, and its maintenance.

use hvbak_manager::hosted_engine::{Maintenance, Verdict, VmStatus};
use serde_json::json;

use super::{Face, Outcome};
use crate::{
    cli::{HostedEngineArgs, HostedEngineCommand, MaintenanceArg},
    exit::{DONE, FAILED},
};

pub async fn run(face: &Face, args: HostedEngineArgs) -> Outcome {
    let config = face.config()?;
    let settings = super::settings(&config)?;
    match args.command {
        HostedEngineCommand::Plan(args) if args.run => {
            super::hosted_engine_walk::run(face, &config, settings, args).await
        }
        HostedEngineCommand::Plan(args) => super::hosted_engine_plan::run(face, &config, args),
        HostedEngineCommand::Status { host } => {
            let status = hvbak_run::hosted_engine_status(&settings, &host).await?;
            let healthy = tell(face, &status);
            let code = if healthy { DONE } else { FAILED };
            Ok((code, json!({ "verdict": status.verdict() })))
        }
        HostedEngineCommand::Maintenance { host, mode } => {
            let mode = match mode {
                MaintenanceArg::Global => Maintenance::Global,
                MaintenanceArg::Local => Maintenance::Local,
                MaintenanceArg::None => Maintenance::None,
            };
            let status = hvbak_run::hosted_engine_maintenance(&settings, &host, mode).await?;
            tell(face, &status);
            Ok((DONE, json!({ "global_maintenance": status.global_maintenance })))
        }
    }
}

/// Says it; whether the engine is healthy.
fn tell(face: &Face, status: &VmStatus) -> bool {
    face.printer.record("hosted-engine", status);
    if status.global_maintenance {
        face.printer.data("GLOBAL MAINTENANCE: no host starts or stops the engine's VM");
    }
    for host in &status.hosts {
        let engine = &host.engine_status;
        let state = match (host.live_data, &engine.reason) {
            (false, _) => "no live data: what it last said is not shown".to_owned(),
            (true, Some(reason)) => format!("vm {}, {} ({reason})", engine.vm, engine.health),
            (true, None) => format!("vm {}, {}", engine.vm, engine.health),
        };
        let local = if host.maintenance { ", local maintenance" } else { "" };
        face.printer.data(&format!("{}  score {}  {state}{local}", host.hostname, host.score));
    }
    let verdict = status.verdict();
    face.printer.data(&match &verdict {
        Verdict::Healthy { host } => format!("the engine runs on {host} and answers"),
        Verdict::NotAnswering { host, detail, reason } => {
            format!("the engine's VM runs on {host} and does not answer: {detail}, {reason}")
        }
        Verdict::Down => "no host runs the engine's VM".to_owned(),
        Verdict::Unknown => {
            "not known: no host with live data says that the engine's VM runs, or that it is down"
                .to_owned()
        }
    });
    matches!(verdict, Verdict::Healthy { .. })
}
