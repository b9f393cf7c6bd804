//! `hvbak`: the face. Parses what is typed, runs one command, turns its end into words
//! and an exit code. No policy lives here.

mod cli;
mod commands;
mod config;
mod exit;
mod notify;
mod policy;
mod printer;
mod progress;
mod restore_map;
mod service;
mod share;

use std::{process::ExitCode, sync::Arc};

use clap::Parser;
use tokio_util::sync::CancellationToken;

use crate::{
    cli::{Cli, Command},
    commands::{Face, Outcome},
    printer::Printer,
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let journal = init_log(&cli);
    // Two crypto providers could be linked one day; the choice is made here, once.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        eprintln!("error: a TLS provider is installed already");
        return ExitCode::from(exit::FAILED);
    }
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return ExitCode::from(exit::FAILED);
        }
    };
    let code = runtime.block_on(run(cli, journal));
    // Threads that wait for a dead peer must not keep the process.
    runtime.shutdown_background();
    ExitCode::from(code)
}

async fn run(cli: Cli, journal: bool) -> u8 {
    let printer = Arc::new(Printer::new(cli.json, cli.quiet, journal));
    printer.service.ready();
    let cancel = CancellationToken::new();
    let signal = watch_signals(cancel.clone(), printer.clone());
    let face = Face { config_path: cli.config.clone(), printer: printer.clone(), cancel };
    let outcome = dispatch(&face, cli.command).await;
    let cancelled = *signal.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let (code, result, error) = match outcome {
        Ok((code, result)) => (code, result, None),
        Err(error) => {
            (cancelled.unwrap_or_else(|| error.code()), serde_json::json!({}), Some(error))
        }
    };
    if cli.notify {
        notify::send(&face, code, &result, error.as_ref()).await;
    }
    printer.finish(code, result, error.as_ref());
    code
}

async fn dispatch(face: &Face, command: Command) -> Outcome {
    match command {
        Command::Init(args) => commands::init::run(face, args).await,
        Command::Enroll(args) => commands::enroll::run(face, args).await,
        Command::Role(args) => commands::role::run(face, args).await,
        Command::Doctor => commands::doctor::run(face).await,
        Command::List(args) => commands::list::run(face, args).await,
        Command::Backup(args) => commands::backup::run(face, args).await,
        Command::Points(args) => commands::points::list(face, args),
        Command::Show(args) => commands::points::show(face, args),
        Command::Verify(args) => commands::verify::run(face, args).await,
        Command::Restore(args) => commands::restore::run(face, args).await,
        Command::Export(args) => commands::export::run(face, args).await,
        Command::HostedEngine(args) => commands::hosted_engine::run(face, args).await,
        Command::ManagerBackup(args) => commands::manager_backup::run(face, args).await,
        Command::ManagerRestore(args) => commands::manager_restore::run(face, args).await,
        Command::Dwh(args) => commands::dwh::run(face, args).await,
        Command::ManagerPaths(args) => commands::manager_paths::run(face, args).await,
        Command::ManagerPrune(args) => commands::manager_prune::run(face, args).await,
        Command::ManagerPoints => commands::manager_points::run(face),
        Command::ManagerVerify(args) => commands::manager_verify::run(face, args).await,
        Command::Drill(args) => commands::drill::run(face, args).await,
        Command::Policy(args) => commands::policy::run(face, args).await,
        Command::Prune(args) => commands::prune::run(face, args).await,
        Command::Report(args) => commands::report::run(face, args).await,
        Command::Runbook(args) => commands::runbook::run(face, args).await,
        Command::Cleanup(args) => commands::cleanup::run(face, args).await,
        Command::Manual { dir } => commands::manual::run(&dir),
        Command::Completions { shell } => {
            let mut command = <Cli as clap::CommandFactory>::command();
            clap_complete::generate(shell, &mut command, "hvbak", &mut std::io::stdout());
            Ok((exit::DONE, serde_json::json!({})))
        }
    }
}

/// First signal: stop, undo, tell. Second: leave at once; `hvbak cleanup` undoes.
fn watch_signals(
    cancel: CancellationToken,
    printer: Arc<Printer>,
) -> Arc<std::sync::Mutex<Option<u8>>> {
    use tokio::signal::unix::{SignalKind, signal};
    let seen = Arc::new(std::sync::Mutex::new(None));
    let shared = seen.clone();
    tokio::spawn(async move {
        let (Ok(mut int), Ok(mut term)) =
            (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            return;
        };
        for round in 0.. {
            let code = tokio::select! {
                _ = int.recv() => 130,
                _ = term.recv() => 143,
            };
            if round > 0 {
                printer.say("leaving at once; run `hvbak cleanup` to undo what is left");
                std::process::exit(i32::from(code));
            }
            *shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(code);
            printer.service.stopping();
            printer.say("stopping and undoing; once more to leave at once");
            cancel.cancel();
        }
    });
    seen
}

/// Whether words go to the journal: it is what stderr is, and it listens.
fn init_log(cli: &Cli) -> bool {
    use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};
    let level = match (cli.quiet, cli.verbose) {
        (true, _) => "error",
        (_, 0) => "hvbak=warn,error",
        (_, 1) => "hvbak=info,warn",
        (_, 2) => "hvbak=debug,info",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env("HVBAK_LOG").unwrap_or_else(|_| {
        // Rooms are crates of their own: hvbak=… means all of them.
        let level = level.replace(
            "hvbak=",
            match cli.verbose {
                0 => "hvbak_run=warn,hvbak_engine=warn,hvbak_ssh=warn,hvbak_repo=warn,hvbak=",
                1 => "hvbak_run=info,hvbak_engine=info,hvbak_ssh=info,hvbak_repo=info,hvbak=",
                _ => "hvbak_run=debug,hvbak_engine=debug,hvbak_ssh=debug,hvbak_repo=debug,hvbak=",
            },
        );
        EnvFilter::new(level)
    });
    if service::stderr_is_journal()
        && let Ok(layer) = tracing_journald::layer()
        && let Ok(talk) = format!("{}=info", service::TALK).parse()
    {
        let layer = layer.with_field_prefix(Some("HVBAK".into()));
        tracing_subscriber::registry().with(filter.add_directive(talk)).with(layer).init();
        return true;
    }
    let colour = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colour)
        .with_writer(std::io::stderr)
        .init();
    false
}
