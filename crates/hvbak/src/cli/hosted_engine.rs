//! What is typed after `hvbak hosted-engine`.

use clap::{Args, Subcommand, ValueEnum};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  hvbak hosted-engine status --host hv1.example.com\n  hvbak hosted-engine maintenance --host hv1.example.com --mode global\n  hvbak hosted-engine plan recover --host hv1.example.com --to hv9.example.com\n  hvbak hosted-engine plan recover --host hv1.example.com --to hv9.example.com --run\n\nWithout a terminal a walk ends with exit code 16 where somebody must do or confirm something, and says\nhow to go on."
)]
pub struct HostedEngineArgs {
    #[command(subcommand)]
    pub command: HostedEngineCommand,
}

#[derive(Debug, Subcommand)]
pub enum HostedEngineCommand {
    /// What the hosts say of the engine's VM; ends with 1 unless it runs and answers
    Status {
        /// A host of the self-hosted engine: its name in [hosts], or its address
        #[arg(long, value_name = "HOST")]
        host: String,
    },
    /// Print a long sequence with this site's names, archive and sums filled in, or walk through it
    Plan(HostedEnginePlanArgs),
    /// Set the maintenance and wait until the hosts show it
    Maintenance {
        /// A host of the self-hosted engine: its name in [hosts], or its address
        #[arg(long, value_name = "HOST")]
        host: String,
        /// global before work on the engine's VM, none afterwards, local for one host
        #[arg(long, value_enum)]
        mode: MaintenanceArg,
    },
}

#[derive(Debug, Args)]
pub struct HostedEnginePlanArgs {
    /// What is to happen
    #[arg(value_enum)]
    pub sequence: SequenceArg,
    /// A host of the self-hosted engine: its name in [hosts], or its address; not for to-hosted
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,
    /// The fresh host; for move, recover and to-hosted
    #[arg(long, value_name = "HOST")]
    pub to: Option<String>,
    /// The engine's archive: FQDN, FQDN@latest, FQDN@20261121T021454Z; the newest with files
    /// and database without it. Sequences that back up the engine themselves take one only
    /// where that step is passed
    #[arg(long, value_name = "POINT")]
    pub archive: Option<String>,
    /// Walk through it: hvbak does what it can over SSH, waits for what only a person can do,
    /// and sees each step done before the next. A walk that was broken off goes on where it was
    #[arg(long, help_heading = "Walking")]
    pub run: bool,
    /// Only print it, as without `--run`
    #[arg(long, conflicts_with = "run")]
    pub dry_run: bool,
    /// Go on at this step: those before it are done, or need not be
    #[arg(long, value_name = "STEP", requires = "run", help_heading = "Walking")]
    pub from: Option<String>,
    /// Forget how far an earlier walk came
    #[arg(long, requires = "run", help_heading = "Walking")]
    pub restart: bool,
    /// Do not ask for steps that harm nobody
    #[arg(long, requires = "run", help_heading = "Walking")]
    pub yes: bool,
    /// Answer a step beforehand (repeatable): hvbak shall do it; of a person's step that was
    /// shown by an earlier call: it is done
    #[arg(long, value_name = "STEP", requires = "run", help_heading = "Walking")]
    pub confirm: Vec<String>,
    /// Answer for a step that is done where whoever could tell is silent, such as a host that is
    /// gone (repeatable); what hvbak sees otherwise is believed before it
    #[arg(long, value_name = "STEP", requires = "run", help_heading = "Walking")]
    pub witness: Vec<String>,
    /// Take the archive although it is one of a manager with another name
    #[arg(long, requires = "run", help_heading = "Walking")]
    pub other_name: bool,
    /// How long a sign is waited for after hvbak did something
    #[arg(
        long,
        value_name = "MINUTES",
        requires = "run",
        default_value_t = DEFAULT_WAIT,
        help_heading = "Walking"
    )]
    pub wait: u64,
    #[command(flatten)]
    pub key: super::IdentityArg,
}

/// Minutes that a sign is waited for.
pub const DEFAULT_WAIT: u64 = 15;

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum SequenceArg {
    /// A sound engine, to new storage by way of a fresh host
    Move,
    /// A lost engine, onto a fresh host and new storage
    Recover,
    /// A broken engine in a sound VM
    Overwrite,
    /// A manager with a machine of its own becomes a self-hosted engine, on a fresh host
    ToHosted,
    /// A self-hosted engine gets a fresh machine of its own
    ToStandalone,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum MaintenanceArg {
    Global,
    Local,
    None,
}
