//! `hvbak hosted-engine plan … --run`: the steps shown one after the other, and a person asked
//! where one is needed. What is done and in which order is `hvbak-run`'s.

use std::{future::Future, io::IsTerminal, path::Path, pin::Pin, sync::Arc, time::Duration};

use hvbak_manager::sequence::{State, Step};
use hvbak_run::{Answer, Ask, Companion, Position, Settings, WalkContext, WalkEnd, WalkOptions};
use serde_json::json;

use super::{
    Face, Outcome,
    hosted_engine_plan::{choose, engine_name, sequence, show},
    identities,
};
use crate::{
    cli::{DEFAULT_CONFIG, DEFAULT_WAIT, HostedEnginePlanArgs},
    config::Config,
    exit::{CliError, DONE, WAITING},
    printer::Printer,
};

pub async fn run(
    face: &Face,
    config: &Config,
    settings: Settings,
    args: HostedEnginePlanArgs,
) -> Outcome {
    let repository = hvbak_run::open_repository(&config.repository.path)?;
    let fqdn = engine_name(&config.engine.url);
    let name = fqdn.parse().map_err(|why| CliError::usage(format!("the engine's URL: {why}")))?;
    let title = |point: hvbak_repo::ManagerPoint| point.title();
    let archive = match &args.archive {
        Some(selector) => choose(&repository, &fqdn, Some(selector))?.map(title),
        None => None,
    };
    let sequence = sequence(args.sequence);
    let newest = match (&archive, sequence.makes_archive()) {
        (None, false) => choose(&repository, &fqdn, None)?.map(title),
        _ => None,
    };
    let context = WalkContext {
        repository: Arc::new(repository),
        manager: settings.manager.clone(),
        recipients: face.recipients()?,
        identities: identities(&args.key)?,
        engine: face.engine_access(),
        settings: Arc::new(settings),
        events: face.printer.clone(),
        cancel: face.cancel.clone(),
        job: hvbak_types::JobId::random(),
        name,
    };
    let options = WalkOptions {
        sequence,
        host: args.host.clone(),
        to: args.to.clone(),
        archive,
        newest,
        from: args.from.clone(),
        restart: args.restart,
        yes: args.yes,
        confirmed: args.confirm.iter().cloned().collect(),
        witnessed: args.witness.iter().cloned().collect(),
        patience: Duration::from_secs(args.wait.min(24 * 60) * 60),
        other_name: args.other_name,
    };
    let person = Person {
        face,
        printer: face.printer.clone(),
        there: !face.printer.json && std::io::stdin().is_terminal(),
    };
    match hvbak_run::walk(&context, &options, &person).await? {
        WalkEnd::Done => {
            face.printer.data("all steps are done");
            Ok((DONE, json!({ "sequence": sequence })))
        }
        WalkEnd::Waiting { step, ask, told } => {
            if let Some(told) = &told {
                face.printer.say(&format!("   seen so far: {told}"));
            }
            let go_on = go_on(&face.config_path, &args, sequence.word(), &step, ask);
            face.printer.data(&format!("waiting at step `{step}`: {}", wanted(ask)));
            face.printer.data(&format!("go on with: {go_on}"));
            let result = json!({
                "sequence": sequence, "step": step, "wanted": wanted(ask), "told": told,
                "go_on": go_on,
            });
            Ok((WAITING, result))
        }
    }
}

/// What is missing.
fn wanted(ask: Ask) -> &'static str {
    match ask {
        Ask::Do => "hvbak will do it when it may",
        Ask::DoSurely => "hvbak will do it when you are sure; users of the site notice",
        Ask::Done => "somebody must do it",
        Ask::DoneSurely => "somebody must do it, and answer for it",
        Ask::Witness => "nobody can tell but somebody who looks for himself",
        Ask::Restart => "an earlier walk has begun what cannot be taken back",
    }
}

/// The command that goes on.
fn go_on(
    config: &Path,
    args: &HostedEnginePlanArgs,
    sequence: &str,
    step: &str,
    ask: Ask,
) -> String {
    let mut line = String::from("hvbak");
    // Another configuration is another site.
    if config != Path::new(DEFAULT_CONFIG) {
        let config = std::path::absolute(config).unwrap_or_else(|_| config.to_owned());
        line.push_str(&format!(" --config {}", word(&config.display().to_string())));
    }
    line.push_str(&format!(" hosted-engine plan {sequence}"));
    let options = [("--host", &args.host), ("--to", &args.to), ("--archive", &args.archive)];
    for (option, value) in options {
        if let Some(value) = value {
            line.push_str(&format!(" {option} {}", word(value)));
        }
    }
    line.push_str(" --run");
    if args.wait != DEFAULT_WAIT {
        line.push_str(&format!(" --wait {}", args.wait));
    }
    if let Some(identity) = &args.key.identity {
        line.push_str(&format!(" --identity {}", word(&identity.display().to_string())));
    }
    if args.other_name {
        line.push_str(" --other-name");
    }
    if args.yes {
        line.push_str(" --yes");
    }
    if ask == Ask::Restart {
        line.push_str(" --restart");
    }
    let option = if ask == Ask::Witness { "--witness" } else { "--confirm" };
    format!("{line} {option} {step}")
}

/// A word for a shell.
fn word(text: &str) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || "@%+=:,./-_".contains(c);
    if !text.is_empty() && text.chars().all(safe) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Whoever sits at the terminal, if there is somebody.
struct Person<'a> {
    face: &'a Face,
    printer: Arc<Printer>,
    there: bool,
}

impl Companion for Person<'_> {
    fn comes(&self, at: Position<'_>) {
        let state = match at.state {
            State::Begun => "begun",
            State::Shown => "shown",
            _ => "open",
        };
        let mut record = serde_json::to_value(at.step).unwrap_or_default();
        if let Some(object) = record.as_object_mut() {
            object.insert("number".into(), at.number.into());
            object.insert("of".into(), at.of.into());
            object.insert("state".into(), state.into());
        }
        self.printer.record("step", &record);
        show(self.face, at.number, at.step);
        if at.state == State::Begun {
            self.printer.data("   begun earlier");
        }
    }

    fn over(&self, at: Position<'_>, already: bool) {
        let record = json!({
            "number": at.number, "name": at.step.name, "state": "done", "already": already,
        });
        self.printer.record("step-done", &record);
        self.printer.data(if already { "   is so already" } else { "   done" });
    }

    fn ask<'s>(
        &'s self,
        step: Option<&'s Step>,
        ask: Ask,
        told: Option<&'s str>,
    ) -> Pin<Box<dyn Future<Output = Answer> + Send + 's>> {
        Box::pin(async move {
            if !self.there {
                return Answer::Nobody;
            }
            if let Some(told) = told {
                self.printer.data(&format!("   seen so far: {told}"));
            }
            loop {
                let is_long = ask == Ask::Done && step.is_some_and(|step| step.once);
                self.printer.ask(if is_long { LONG } else { question(ask) });
                let Some(line) = read_line().await else { return Answer::Nobody };
                let started = is_long && line.trim() == "s";
                if let Some(answer) =
                    if started { Some(Answer::Started) } else { understood(ask, &line) }
                {
                    return answer;
                }
            }
        })
    }
}

/// Of what takes its time.
const LONG: &str = "   Enter: it is done; s: it was started; q: not now.";

fn question(ask: Ask) -> &'static str {
    match ask {
        Ask::Do => "   Enter: hvbak does it; q: not now.",
        Ask::DoSurely => "   yes: hvbak does it, users of the site notice; q: not now.",
        Ask::Done => "   Enter: it is done; q: not now.",
        Ask::DoneSurely => "   yes: it is done, I answer for it; q: not now.",
        Ask::Witness => {
            "   yes: I have seen it done, and answer for it; Enter: look again; q: not now."
        }
        Ask::Restart => "   yes: forget the earlier walk and begin anew; q: not now.",
    }
}

/// `None`: asked again.
fn understood(ask: Ask, line: &str) -> Option<Answer> {
    let enter = matches!(ask, Ask::Do | Ask::Done);
    match line.trim() {
        "q" | "quit" | "no" | "n" => Some(Answer::Stop),
        "" if enter => Some(Answer::Yes),
        "" if ask == Ask::Witness => Some(Answer::Again),
        "yes" => Some(Answer::Yes),
        _ => None,
    }
}

/// A line of the terminal; `None`: it has gone.
pub(super) async fn read_line() -> Option<String> {
    let read = || {
        let mut line = String::new();
        let count = std::io::stdin().read_line(&mut line).ok()?;
        (count > 0).then_some(line)
    };
    tokio::task::spawn_blocking(read).await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enter_is_not_enough_for_what_cannot_be_taken_back() {
        for ask in [Ask::DoSurely, Ask::DoneSurely, Ask::Restart] {
            assert_eq!(understood(ask, "\n"), None, "{ask:?}");
            assert_eq!(understood(ask, "y\n"), None, "{ask:?}");
            assert_eq!(understood(ask, "yes\n"), Some(Answer::Yes), "{ask:?}");
        }
        for ask in [Ask::Do, Ask::Done] {
            assert_eq!(understood(ask, "\n"), Some(Answer::Yes), "{ask:?}");
            assert_eq!(understood(ask, "what?\n"), None, "{ask:?}");
            assert_eq!(understood(ask, "q\n"), Some(Answer::Stop), "{ask:?}");
        }
    }
}
