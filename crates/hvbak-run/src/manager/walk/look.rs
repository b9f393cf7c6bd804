//! Whether a step is seen to be done, now or within some time.
//!
//! Invariant: looking changes nothing.

use std::time::Duration;

use hvbak_manager::{
    hosted_engine::{
        VmStatusError,
        remote::{ENGINE, engine_at_rest},
    },
    restore::{HEALTH, parse_health},
    sequence::{Place, Seen, SequenceError, Sign, Step},
};

use super::{
    super::{
        hosted_engine_status,
        link::{Link, unless_cancelled},
    },
    WalkContext, Walker, files,
};
use crate::error::{self, Result, RunError};

const POLL: Duration = Duration::from_secs(3);

/// Whether a step may be done already before hvbak begins it.
pub fn is_seen_beforehand(sign: Sign) -> bool {
    match sign {
        Sign::Maintained
        | Sign::Released
        | Sign::EngineStopped
        | Sign::VmDown
        | Sign::Copied
        | Sign::Answered
        | Sign::Swept => true,
        // What is looked for is made by the step, or looked at by it.
        Sign::None
        | Sign::Fit
        | Sign::NotSeenUp
        | Sign::Healthy
        | Sign::FreshArchive
        | Sign::Restored => false,
    }
}

fn is_never_deployed(cause: &RunError) -> bool {
    matches!(cause, RunError::HostedEngine { cause: VmStatusError::NotDeployed, .. })
}

/// Whether the host cannot be asked, or its agents do not answer; a key or a login that is
/// refused is another thing.
pub(super) fn is_silence(cause: &RunError) -> bool {
    match cause {
        RunError::Ssh { .. } => cause.exit_code() == 1,
        RunError::HostedEngine { .. } => !is_never_deployed(cause),
        _ => false,
    }
}

fn in_words(cause: &RunError) -> String {
    let hint = cause.hint().map_or_else(String::new, |hint| format!(" ({hint})"));
    crate::chain(cause) + &hint
}

/// Whether a host has something to say of the self-hosted engine, and why not.
pub async fn speaks(context: &WalkContext, host: &str) -> Result<std::result::Result<(), String>> {
    match hosted_engine_status(&context.settings, host).await {
        Ok(status) if status.hosts.iter().any(|host| host.live_data) => Ok(Ok(())),
        Ok(_) => Ok(Err("no host that it knows of has live data".into())),
        Err(cause) if is_silence(&cause) || is_never_deployed(&cause) => Ok(Err(in_words(&cause))),
        Err(cause) => Err(cause),
    }
}

impl Walker<'_> {
    /// The host that a step is about.
    pub(super) fn host_of(&self, step: &Step) -> Result<&str> {
        match step.place {
            Place::FreshHost => files::fresh(self.options.to.as_deref()),
            _ => {
                let host = self.options.host.as_deref();
                host.ok_or(RunError::WalkSite { cause: SequenceError::NoHost })
            }
        }
    }

    /// Looks once.
    pub(super) async fn seen(&self, step: &Step) -> Result<Seen> {
        let context = self.context;
        let yes = |yes: bool, no: &str| Ok(if yes { Seen::Yes } else { Seen::No(no.to_owned()) });
        match step.sign {
            sign if sign.is_of_hosts() => {
                let host = self.host_of(step)?;
                match hosted_engine_status(&context.settings, host).await {
                    Ok(status) => Ok(sign.judge(&status)),
                    // A person answers for what is lost.
                    Err(cause) if sign == Sign::NotSeenUp => {
                        Ok(Seen::Unknown(crate::chain(&cause)))
                    }
                    // Told, and the person is asked again.
                    Err(cause) if step.hand.is_person() && is_never_deployed(&cause) => {
                        Ok(Seen::No(in_words(&cause)))
                    }
                    Err(cause) => Err(cause),
                }
            }
            Sign::EngineStopped => {
                let doing = "look at the engine's service";
                let text = self.ask_manager(step, ENGINE, doing).await?;
                Ok(engine_at_rest(&text).map_or_else(Seen::No, |()| Seen::Yes))
            }
            Sign::Copied => {
                let Some(archive) = self.record.archive(&context.repository)? else {
                    return Ok(Seen::No("it is not known which archive".into()));
                };
                let why = files::differs(context, self.host_of(step)?, &archive).await?;
                Ok(why.map_or(Seen::Yes, Seen::No))
            }
            Sign::Answered => {
                let (host, engine) = (self.host_of(step)?, self.engine().to_string());
                let there = files::has_answers(context, host, &engine).await?;
                yes(there, "there are no answers for this engine")
            }
            Sign::Swept => {
                let gone = files::is_swept(context, self.host_of(step)?).await?;
                yes(gone, "the copies are still there")
            }
            Sign::Restored => {
                let text = self.ask_manager(step, HEALTH, "ask the engine's health").await?;
                let health = parse_health(&text);
                yes(health.starts_with("DB Up!"), "the engine does not answer")
            }
            // Told by the act itself.
            _ => Ok(Seen::Yes),
        }
    }

    /// Looks once; a host that could tell and is silent is no error.
    pub(super) async fn looked(&self, step: &Step) -> Result<Seen> {
        match unless_cancelled(&self.context.cancel, self.seen(step)).await? {
            Err(cause) if step.sign.is_of_hosts() && is_silence(&cause) => {
                Ok(Seen::Unknown(in_words(&cause)))
            }
            other => other,
        }
    }

    /// Looks until it is seen, or patience ends.
    pub(super) async fn await_sign(&self, step: &Step) -> Result<()> {
        let until = tokio::time::Instant::now() + self.options.patience;
        let mut last = String::new();
        loop {
            // Looking changes nothing: it may end in the middle.
            let seen = unless_cancelled(&self.context.cancel, self.seen(step)).await?;
            let over = tokio::time::Instant::now() >= until;
            let why = match seen {
                Ok(Seen::Yes) => return Ok(()),
                Ok(Seen::No(why) | Seen::Unknown(why)) => why,
                Err(cause) if over => return Err(cause),
                // An agent that is restarted is silent for a while.
                Err(cause) => crate::chain(&cause),
            };
            if over {
                return Err(super::unseen(step, why));
            }
            if why != last {
                self.context.phase(format!("waiting: {why}"));
                last = why;
            }
            unless_cancelled(&self.context.cancel, tokio::time::sleep(POLL)).await?;
        }
    }

    /// Runs a script on the manager's machine.
    pub(super) async fn ask_manager(
        &self,
        step: &Step,
        script: &str,
        doing: &'static str,
    ) -> Result<String> {
        let manager = self.context.manager(step.name)?;
        let mut link = Link::open(&manager.settings, &manager.manager, &manager.cancel).await?;
        let output = link.script(script, &[], doing).await;
        link.close().await;
        let output = output?.check(doing).map_err(error::ssh(&manager.manager.address, doing))?;
        Ok(output.text())
    }
}
