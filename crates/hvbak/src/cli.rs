//! What can be typed. Help, completions and the manual come from these definitions.

mod backup;
mod hosted_engine;
mod manager;
mod restore;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use hosted_engine::{
    DEFAULT_WAIT, HostedEngineArgs, HostedEngineCommand, HostedEnginePlanArgs, MaintenanceArg,
    SequenceArg,
};
pub use manager::{IdentityArg, ManagerBackupArgs, ManagerVerifyArgs};
pub use restore::{DiskFormatArg, InterfaceArg, MacArg, NicArg, RestoreArgs};

use crate::share::Share;

const EXIT_CODES: &str = "\
Exit codes:
  0 done · 1 failed · 2 usage · 3 partly done · 10 no repository · 11 locked
  12 login refused · 13 host key mismatch · 14 engine unreachable
  15 damage found · 16 it is your turn · 130/143 cancelled";

/// The configuration that is read when none is named.
pub const DEFAULT_CONFIG: &str = "/etc/hvbak/hvbak.toml";

/// Backup and restore for oVirt, RHV and Oracle Linux Virtualization Manager, over SSH
#[derive(Debug, Parser)]
#[command(name = "hvbak", version, after_help = EXIT_CODES, arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    /// Configuration file
    #[arg(
        long,
        short,
        global = true,
        env = "HVBAK_CONFIG",
        default_value = DEFAULT_CONFIG,
        value_name = "FILE"
    )]
    pub config: PathBuf,
    /// Print JSON lines on stdout; the last one has "type":"result"
    #[arg(long, global = true)]
    pub json: bool,
    /// Say more (-vv: everything)
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Tell whom [notify] of the configuration names how the command has ended
    #[arg(long, global = true)]
    pub notify: bool,
    /// Say only what went wrong
    #[arg(long, short, global = true)]
    pub quiet: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write a configuration (or use the one there is), check the login, create the repository
    Init(InitArgs),
    /// Give hvbak its SSH key on the hypervisors
    Enroll(EnrollArgs),
    /// Check engine, hosts, repository and clocks; one line each, with remedies
    Doctor,
    /// Show the least role of hvbak's account in the engine, and whether it is held
    Role(RoleArgs),
    /// Show what the engine has
    List(ListArgs),
    /// Back up virtual machines
    Backup(BackupArgs),
    /// Show the policies of the configuration, and which VMs they mean
    Policy(PolicyArgs),
    /// Show the stored points
    Points(PointsArgs),
    /// Show one point
    Show(ShowArgs),
    /// Prove that stored points are whole and undamaged
    Verify(VerifyArgs),
    /// Bring a VM back into the engine
    Restore(RestoreArgs),
    /// Write disks of a point as images, without an engine
    Export(ExportArgs),
    /// Back up the manager itself, with engine-backup over SSH
    ManagerBackup(ManagerBackupArgs),
    /// Show the stored backups of managers
    ManagerPoints,
    /// Files that every backup of the manager takes along beyond engine-backup's own
    ManagerPaths(ManagerPathsArgs),
    /// Move the Data Warehouse away from the manager's machine, or back
    Dwh(DwhArgs),
    /// The self-hosted engine, through one of its hosts
    HostedEngine(HostedEngineArgs),
    /// Prove offline that archives of engine-backup are whole
    ManagerVerify(ManagerVerifyArgs),
    /// Bring a stored backup of the manager back onto a manager
    ManagerRestore(ManagerRestoreArgs),
    /// Remove stored backups of managers that the keep rules do not ask for
    ManagerPrune(ManagerPruneArgs),
    /// Remove points that the keep rules do not ask for; what stands on them stays whole
    Prune(PruneArgs),
    /// Show each VM's newest point, its age and chain, and how the last run went
    Report(ReportArgs),
    /// Rehearse: verify, export and boot stored points, restore a manager's dumps; on this
    /// machine alone
    Drill(DrillArgs),
    /// Write pages for disasters, filled with this site's facts
    Runbook(RunbookArgs),
    /// Undo what a run that died has left behind
    Cleanup(CleanupArgs),
    /// Print shell completions
    #[command(after_help = "Example:\n  hvbak completions bash > /etc/bash_completion.d/hvbak")]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a directory
    #[command(hide = true)]
    Manual { dir: PathBuf },
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  hvbak init --engine https://engine.example.com/ovirt-engine/api \\\n      --username admin@internal --password-file /root/pw --repository /var/lib/hvbak"
)]
pub struct InitArgs {
    /// The engine's API, as https://ENGINE/ovirt-engine/api; not with an existing configuration
    #[arg(long, value_name = "URL")]
    pub engine: Option<String>,
    /// User name as typed at login; `admin@ovirt@internalsso` with Keycloak
    #[arg(long, default_value = "admin@internal")]
    pub username: String,
    /// File that holds the password; without it the password is asked for
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// CA certificate of the engine; without it, it is fetched and its fingerprint shown
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// SHA-256 fingerprint that the fetched CA must have
    #[arg(long, value_name = "HEX")]
    pub ca_fingerprint: Option<String>,
    /// Accept the fetched CA without its fingerprint (trust on first use)
    #[arg(long)]
    pub accept_ca: bool,
    /// Where the points are stored
    #[arg(long, value_name = "DIR", default_value = "/var/lib/hvbak")]
    pub repository: PathBuf,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  hvbak enroll --all --bootstrap-password-file /root/hv.pw\n  hvbak enroll hv1 hv2 --bootstrap-key /root/.ssh/id_rsa\n  hvbak enroll --all --rotate\n  hvbak enroll --all --revoke\n  hvbak enroll hv9 --without-engine --fingerprint SHA256:47DEQpj8HBSa --bootstrap-password-file pw"
)]
pub struct EnrollArgs {
    /// Hosts by name, as the engine calls them
    pub hosts: Vec<String>,
    /// Every host of the engine
    #[arg(long, conflicts_with = "hosts")]
    pub all: bool,
    /// Ask no engine, such as for a fresh host of an engine that is lost: one host, by its
    /// name in [hosts] or by its address. Its key is the one of `--fingerprint` or of the
    /// configuration, or you are shown what it offers and asked
    #[arg(long, conflicts_with_all = ["all", "manager", "rotate"])]
    pub without_engine: bool,
    /// The host's key, as its console shows it (`ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub`):
    /// as SHA256: and base64, or the whole line of the key
    #[arg(long, value_name = "KEY", conflicts_with_all = ["all", "accept_new_host_keys"])]
    pub fingerprint: Option<String>,
    /// The machine of the section [manager], for `hvbak manager-backup`
    #[arg(long, conflicts_with_all = ["hosts", "all", "rotate"])]
    pub manager: bool,
    /// First login with the password in this file
    #[arg(long, value_name = "FILE", conflicts_with = "bootstrap_key")]
    pub bootstrap_password_file: Option<PathBuf>,
    /// First login with this private key
    #[arg(long, value_name = "FILE")]
    pub bootstrap_key: Option<PathBuf>,
    /// First login with the keys of the running ssh-agent
    #[arg(long, conflicts_with_all = ["bootstrap_key", "bootstrap_password_file"])]
    pub bootstrap_agent: bool,
    /// User of the first login
    #[arg(long, default_value = "root")]
    pub bootstrap_user: String,
    /// Take hvbak's key away again
    #[arg(long, conflicts_with = "rotate")]
    pub revoke: bool,
    /// Replace hvbak's key by a new one on all named hosts
    #[arg(long)]
    pub rotate: bool,
    /// Kind of the key that is made
    #[arg(long, value_enum, default_value = "ecdsa")]
    pub key_type: KeyType,
    /// Addresses from which the key is accepted (sshd's from= list)
    #[arg(long, value_name = "LIST")]
    pub from: Option<String>,
    /// Accept the host key of hosts for which the engine has recorded none
    #[arg(long)]
    pub accept_new_host_keys: bool,
    /// Show what would be done
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum KeyType {
    Ecdsa,
    Ed25519,
    Rsa,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  hvbak list vms\n  hvbak list snapshots --vm web1 --json")]
pub struct ListArgs {
    /// What to list
    #[arg(value_enum)]
    pub what: ListWhat,
    /// Only of this VM (snapshots, disks)
    #[arg(long, value_name = "NAME|ID")]
    pub vm: Option<String>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  hvbak role print > make-role.sh     # read it, then run it with sh\n  hvbak role check\n  hvbak role check backup"
)]
pub struct RoleArgs {
    #[command(subcommand)]
    pub command: RoleCommand,
}

#[derive(Debug, Subcommand)]
pub enum RoleCommand {
    /// Print the calls of the API that make role and account; needs no engine
    Print {
        /// What hvbak is to do; backup and restore without it
        what: Vec<RoleFor>,
    },
    /// Ask the engine what the account may do; exit 3 when something is missing
    Check {
        /// What hvbak is to do; backup and restore without it
        what: Vec<RoleFor>,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum, PartialEq, Eq)]
pub enum RoleFor {
    Backup,
    Restore,
    /// Restores that make templates
    Templates,
    /// Events in the engine: `engine_event` of [notify]
    Events,
}

#[derive(Debug, Clone, Copy, ValueEnum, PartialEq, Eq)]
pub enum ListWhat {
    Vms,
    Hosts,
    Domains,
    Disks,
    Templates,
    Tags,
    Clusters,
    Datacenters,
    Networks,
    Snapshots,
}

#[derive(Debug, Args, Default)]
#[command(next_help_heading = "Selection")]
pub struct SelectArgs {
    /// VM by name (repeatable)
    #[arg(long, value_name = "NAME")]
    pub vm: Vec<String>,
    /// VM by id (repeatable)
    #[arg(long, value_name = "ID")]
    pub id: Vec<String>,
    /// VMs whose name matches a shell pattern
    #[arg(long = "match", value_name = "GLOB")]
    pub globs: Vec<String>,
    /// VMs whose whole name matches a regular expression
    #[arg(long, value_name = "REGEX")]
    pub regex: Vec<String>,
    /// VMs with a tag
    #[arg(long, value_name = "TAG")]
    pub tag: Vec<String>,
    /// VMs of a cluster
    #[arg(long, value_name = "NAME")]
    pub cluster: Vec<String>,
    /// VMs of a data center
    #[arg(long, value_name = "NAME")]
    pub datacenter: Vec<String>,
    /// VMs made from a template
    #[arg(long, value_name = "NAME")]
    pub template: Vec<String>,
    /// Every VM
    #[arg(long)]
    pub all: bool,
    /// Leave out VMs by name, id or shell pattern
    #[arg(long, value_name = "NAME|ID|GLOB")]
    pub exclude_vm: Vec<String>,
    /// Leave out VMs with a tag
    #[arg(long, value_name = "TAG")]
    pub exclude_tag: Vec<String>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  hvbak policy list\n  hvbak policy test\n  hvbak policy test nightly --json\n\nA policy is a section of the configuration; `hvbak backup --policy nightly` runs it:\n  [policy.nightly]\n  tags = [\"gold\"]\n  exclude_vms = [\"test*\"]\n  full_every = 7\n  windows = [\"22:00-06:00\"]"
)]
pub struct PolicyArgs {
    #[command(subcommand)]
    pub command: PolicyCommand,
}

#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Show the policies: level, cycle, windows, commands
    List,
    /// Show which VMs they mean now and why, and which VMs none means (exit code 3)
    Test {
        /// Only this one
        name: Option<String>,
    },
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  hvbak backup --vm web1 --dry-run\n  hvbak backup --all --exclude-vm 'test*' --json\n  hvbak backup --tag gold --quiesce require\n  hvbak backup --policy nightly\n  hvbak backup --save-template 'golden-*'"
)]
pub struct BackupArgs {
    #[command(flatten)]
    pub select: SelectArgs,
    #[command(flatten)]
    pub templates: backup::TemplateArgs,
    /// What a policy of the configuration says: its VMs, level, window and commands
    #[arg(long, value_name = "NAME", conflicts_with_all = [
        "vm", "id", "globs", "regex", "tag", "cluster", "datacenter", "template", "all",
        "exclude_vm", "exclude_tag", "exclude_disk", "save_template",
    ])]
    pub policy: Option<String>,
    /// Begin VMs although the policy's windows are closed
    #[arg(long, requires = "policy")]
    pub ignore_windows: bool,
    /// Store the configuration alone: no disk, no snapshot, no host; such points count for nothing
    /// but `restore config:VM --config-only`
    #[arg(long, conflicts_with_all = ["exclude_disk", "level", "quiesce", "max_age", "host", "save_template"])]
    pub config_only: bool,
    /// Leave out disks by alias, id or shell pattern
    #[arg(long, value_name = "ALIAS|ID|GLOB")]
    pub exclude_disk: Vec<String>,
    /// How much to read; the policy's, or as much as changed
    #[arg(long, value_enum)]
    pub level: Option<LevelArg>,
    /// Whether guests are frozen for the snapshot
    #[arg(long, value_enum)]
    pub quiesce: Option<QuiesceArg>,
    /// Leave out VMs that have a point younger than this (20h, 90m): a run that was stopped
    /// goes on with the rest
    #[arg(long, value_name = "AGE")]
    pub max_age: Option<jiff::SignedDuration>,
    /// Read through this host
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,
    /// Print the plan and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum LevelArg {
    /// What changed since the last point, where that is possible
    Auto,
    /// Everything
    Full,
    /// As auto; disks for which it is not possible are read in full, and the report says why
    Incremental,
    /// What changed since the last full point, which stays the base
    Differential,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum QuiesceArg {
    /// Freeze when there are signs of a guest agent, go on when it fails
    Auto,
    /// Fail when freezing fails
    Require,
    /// Never freeze
    Never,
}

#[derive(Debug, Args)]
pub struct PointsArgs {
    /// Only of this VM
    #[arg(long, value_name = "NAME|ID")]
    pub vm: Option<String>,
    /// Points that hold a configuration alone
    #[arg(long)]
    pub config_only: bool,
}

const POINT_HELP: &str = "VM, VM@latest, VM@20261121T021454Z or VM@2026-11-21; VM is a name or an id; config: before it for stored configurations";

#[derive(Debug, Args)]
pub struct ShowArgs {
    #[arg(help = POINT_HELP)]
    pub point: String,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  hvbak verify web1@latest\n  hvbak verify --all\n  hvbak verify --all --share 7     # every day: all in a week\n  hvbak verify --all --share 3/7"
)]
pub struct VerifyArgs {
    #[arg(help = POINT_HELP)]
    pub points: Vec<String>,
    /// Every point of the repository
    #[arg(long, conflicts_with = "points")]
    pub all: bool,
    /// Of all points one of N shares: the K-th, or today's (in UTC), so that N days in a row
    /// walk through all of them; a point keeps its share
    #[arg(long, value_name = "[K/]N", requires = "all", conflicts_with = "points")]
    pub share: Option<Share>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  hvbak export web1@latest --format qcow2 --output /restore\n  hvbak export db1@2026-11-21 --disk db1_Disk1 --format raw --output db1.raw"
)]
pub struct ExportArgs {
    #[arg(help = POINT_HELP)]
    pub point: String,
    /// One disk, by alias or id; all disks without it
    #[arg(long, value_name = "ALIAS|ID")]
    pub disk: Option<String>,
    /// Format of the image
    #[arg(long, value_enum, default_value = "qcow2")]
    pub format: ImageFormatArg,
    /// A file for one disk; a directory for all, in which NAME-POINT/ gets the documents: OVF, XML
    #[arg(long, value_name = "PATH")]
    pub output: PathBuf,
    /// Replace existing files
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ImageFormatArg {
    Qcow2,
    Raw,
}

#[derive(Debug, Args)]
pub struct CleanupArgs {
    /// Show what would be undone
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "The machine is the one of the section [manager]. Nothing is changed there before everything that can\nbe known was looked at; what stops the restore is told with its remedy. `--dry-run` looks and prints\nevery command. The restore goes on when the connection or hvbak is lost: run the same command again,\nor `--pick-up`, to wait for it and to learn what came of it.\n\nExamples:\n  Fresh machine:       hvbak manager-restore engine.example.com --provision-all-databases --engine-setup\n  Overwrite:           hvbak manager-restore engine.example.com --engine-cleanup --restore-permissions\n  Engine's database:   hvbak manager-restore engine.example.com --scope db --restore-permissions\n  Remote database:     hvbak manager-restore engine.example.com --scope db --no-restore-permissions \\\n                           --credentials db=engine@db.example.com/engine --password-file db=/root/pw"
)]
pub struct ManagerRestoreArgs {
    /// FQDN, FQDN@latest, FQDN@20261121T021454Z, FQDN@2026-11-21
    #[arg(value_name = "POINT", required_unless_present = "pick_up")]
    pub point: Option<String>,
    /// What to restore (repeatable): all, files, db, dwhdb, cinderlibdb, managedblockdb,
    /// keycloakdb, grafanadb
    #[arg(long, value_name = "SCOPE", default_value = "all")]
    pub scope: Vec<String>,
    /// Look, print what would be found and run, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Wait for a restore that lost its hvbak, and judge it
    #[arg(long, conflicts_with_all = ["point", "dry_run"])]
    pub pick_up: bool,
    /// Make roles and databases, as on a fresh machine
    #[arg(long, help_heading = "Databases")]
    pub provision_all_databases: bool,
    /// Make only this one (repeatable)
    #[arg(
        long,
        value_name = "SCOPE",
        help_heading = "Databases",
        conflicts_with = "provision_all_databases"
    )]
    pub provision: Vec<String>,
    /// Restore who may do what in the databases: the same roles are there
    #[arg(long, help_heading = "Databases", conflicts_with = "no_restore_permissions")]
    pub restore_permissions: bool,
    /// Leave permissions out: the roles are others
    #[arg(long, help_heading = "Databases")]
    pub no_restore_permissions: bool,
    /// Restore a database to another place (repeatable); not together with provisioning
    #[arg(long, value_name = "SCOPE=USER@HOST[:PORT]/DATABASE", help_heading = "Databases")]
    pub credentials: Vec<String>,
    /// The password for it, in a file of mode 0600
    #[arg(long, value_name = "SCOPE=FILE", help_heading = "Databases")]
    pub password_file: Vec<String>,
    /// Reach it with TLS
    #[arg(long, value_name = "SCOPE", help_heading = "Databases")]
    pub tls: Vec<String>,
    /// Reach it with TLS and check its certificate
    #[arg(long, value_name = "SCOPE", help_heading = "Databases")]
    pub tls_validated: Vec<String>,
    /// Run engine-cleanup first: it stops the engine, dumps and empties its databases, and
    /// removes its configuration
    #[arg(long, help_heading = "Before and after")]
    pub engine_cleanup: bool,
    /// The backup is of a manager with another name than the one that is set up here, and
    /// replaces it all the same
    #[arg(long, help_heading = "Before and after")]
    pub other_name: bool,
    /// Run engine-setup afterwards, with defaults and without new packages
    #[arg(long, help_heading = "Before and after")]
    pub engine_setup: bool,
    /// Answers for engine-setup; sent as a secret and removed
    #[arg(long, value_name = "FILE", help_heading = "Before and after", requires = "engine_setup")]
    pub answer_file: Option<PathBuf>,
    /// A host of the self-hosted engine, to be asked whether global maintenance is set
    #[arg(long, value_name = "HOST", help_heading = "Self-hosted engine")]
    pub hosted_engine_host: Option<String>,
    /// Leave the self-hosted engine's storage domain and VM out of the engine
    #[arg(long, help_heading = "Self-hosted engine")]
    pub he_remove_storage_vm: bool,
    /// Leave its hosts out of the engine
    #[arg(long, help_heading = "Self-hosted engine")]
    pub he_remove_hosts: bool,
    /// Keep running tasks, jobs and the state of highly available VMs as they were
    #[arg(long)]
    pub keep_temporary_data: bool,
    #[command(flatten)]
    pub key: IdentityArg,
}

#[derive(Debug, Args)]
#[command(
    after_help = "The list is a file of hvbak's own that engine-backup reads (BACKUP_PATHS); files of others beside\nit stay as they are. What is in an archive comes back over the machine with it: `manager-restore`\nwith the scope `files` replaces /etc/hosts, too.\n\nExamples:\n  hvbak manager-paths list\n  hvbak manager-paths add /etc/hosts /etc/chrony.conf /etc/exports\n  hvbak manager-paths remove /etc/exports --dry-run"
)]
pub struct ManagerPathsArgs {
    #[command(subcommand)]
    pub command: ManagerPathsCommand,
}

#[derive(Debug, Subcommand)]
pub enum ManagerPathsCommand {
    /// Show the list and what of it is there
    List,
    /// Add files and directories, absolute
    Add {
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<String>,
        /// Show the list as it would be
        #[arg(long)]
        dry_run: bool,
    },
    /// Take files and directories out of the list
    Remove {
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<String>,
        /// Show the list as it would be
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, Args)]
#[command(
    after_help = "Everything that can be known is looked at first, and the changes of files are shown before they\nare made. Originals and progress are kept in the repository (manager/FQDN/.dwh-*): when a move\ndied, the same command goes on, and `--revert` puts every file back byte for byte. The old\ndatabase is read and nothing else.\n\nExamples:\n  hvbak dwh move-database --to db.example.com --password-file /root/dwh.pw --dry-run\n  hvbak dwh move-database --to db.example.com:5433 --user dwh --database history \\\n      --password-file /root/dwh.pw --tls-validated\n  hvbak dwh move-database --revert\n  hvbak dwh move-service --to dwh.example.com --engine-db-host engine.example.com\n  hvbak dwh move-service --revert\n  hvbak dwh move-service --revert --machine-is-lost"
)]
pub struct DwhArgs {
    #[command(subcommand)]
    pub command: DwhCommand,
}

#[derive(Debug, Subcommand)]
pub enum DwhCommand {
    /// Copy the database to an empty one elsewhere, and let service and engine use it
    MoveDatabase(DwhDatabaseArgs),
    /// Let another machine run the service; its database was moved before
    MoveService(DwhServiceArgs),
}

#[derive(Debug, Args)]
pub struct DwhServiceArgs {
    /// The machine, with ovirt-engine-dwh installed: its name in [hosts], or its address
    #[arg(long, value_name = "HOST", required_unless_present = "revert")]
    pub to: Option<String>,
    /// How that machine reaches the engine's database, when that is on the manager
    #[arg(long, value_name = "HOST")]
    pub engine_db_host: Option<String>,
    /// Put the newest move back: the service on the manager again
    #[arg(long, conflicts_with_all = ["to", "engine_db_host"])]
    pub revert: bool,
    /// With --revert: that machine is gone for good and is not asked
    #[arg(long, requires = "revert")]
    pub machine_is_lost: bool,
    /// Look, print every change, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct DwhDatabaseArgs {
    /// The PostgreSQL that it moves to, as the manager reaches it
    #[arg(long, value_name = "HOST[:PORT]", required_unless_present = "revert")]
    pub to: Option<String>,
    /// Its role, which owns the database
    #[arg(long, default_value = "ovirt_engine_history")]
    pub user: String,
    /// Its database, which is there and empty
    #[arg(long, default_value = "ovirt_engine_history")]
    pub database: String,
    /// The role's password, in a file of mode 0600
    #[arg(long, value_name = "FILE", required_unless_present = "revert")]
    pub password_file: Option<PathBuf>,
    /// Reach it with TLS
    #[arg(long)]
    pub tls: bool,
    /// Reach it with TLS and check its certificate
    #[arg(long)]
    pub tls_validated: bool,
    /// Put the newest move back, when nothing was collected since
    #[arg(long, conflicts_with_all = ["to", "password_file", "tls", "tls_validated"])]
    pub revert: bool,
    /// With --revert: what was collected since the move stays behind in the new database
    #[arg(long, requires = "revert")]
    pub lose_rows: bool,
    /// Look, print every change and command, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum CompressorArg {
    Gzip,
    Bzip2,
    Xz,
    None,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  hvbak prune --dry-run\n  hvbak prune --vm web1 --keep-last 3\n  hvbak prune --keep-daily 7 --keep-weekly 5 --keep-monthly 12\n\nRules of the command line replace all of the configuration's [retention]:\n  [retention]\n  daily = 7\n  weekly = 5\n  monthly = 12\n  time_zone = \"Europe/Vienna\"   # UTC without it"
)]
pub struct PruneArgs {
    /// Only points of this VM (repeatable)
    #[arg(long, value_name = "NAME|ID")]
    pub vm: Vec<String>,
    #[command(flatten)]
    pub keep: KeepArgs,
    /// Show what would be removed and merged
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  hvbak runbook --output /srv/www/runbook\n\nWrites one Markdown page per disaster and runbook.html with all of them, which needs no\nnetwork and prints well. Pages hold names, addresses and fingerprints, no secrets. Write\nthem after every night's backups and keep a copy where the disaster does not reach it.\n\n  [runbook]\n  contacts = [\"Storage: +43 1 2345\"]\n  priority_tag = \"hvbak-priority-\"   # a VM tagged hvbak-priority-1 comes back first"
)]
pub struct RunbookArgs {
    /// Directory for the pages
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Touches neither engine, hosts nor manager. Without --vm and --manager: every VM's newest\npoint and every manager's newest archive. VMs come in the order of their turn, so that\n`hvbak drill --count 5` every night walks through all of them.\n\nExamples:\n  hvbak drill --dry-run\n  hvbak drill --count 5\n  hvbak drill --vm web1 --keep\n  hvbak drill --manager\n\n  [drill]\n  scratch = \"/var/tmp\"   # needs room for one VM's disks\n  boot_seconds = 180\n  memory_mib = 1024\n  user = \"nobody\"        # whom QEMU and PostgreSQL run as"
)]
pub struct DrillArgs {
    /// Only this VM (repeatable)
    #[arg(long, value_name = "NAME|ID")]
    pub vm: Vec<String>,
    /// At most so many VMs: never rehearsed ones first, then by how long ago it was
    #[arg(long, value_name = "N")]
    pub count: Option<usize>,
    /// Managers' archives; without --vm nothing else
    #[arg(long)]
    pub manager: bool,
    /// Verify and export, and start nothing
    #[arg(long)]
    pub no_boot: bool,
    /// How long a booted VM is watched (90s, 5m)
    #[arg(long, value_name = "TIME")]
    pub time_limit: Option<jiff::SignedDuration>,
    /// Work below this directory
    #[arg(long, value_name = "DIR")]
    pub scratch: Option<PathBuf>,
    /// Leave images and consoles where they are, and say where
    #[arg(long)]
    pub keep: bool,
    /// Show what would be done
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub key: IdentityArg,
}

/// Which points stay.
#[derive(Debug, Args)]
pub struct KeepArgs {
    /// Keep the newest N points
    #[arg(long, value_name = "N", help_heading = "Keep rules")]
    pub keep_last: Option<u32>,
    /// Keep the newest point of each of N hours that have one
    #[arg(long, value_name = "N", help_heading = "Keep rules")]
    pub keep_hourly: Option<u32>,
    /// The same for days
    #[arg(long, value_name = "N", help_heading = "Keep rules")]
    pub keep_daily: Option<u32>,
    /// The same for weeks, which begin on Monday
    #[arg(long, value_name = "N", help_heading = "Keep rules")]
    pub keep_weekly: Option<u32>,
    /// The same for months
    #[arg(long, value_name = "N", help_heading = "Keep rules")]
    pub keep_monthly: Option<u32>,
    /// The same for years
    #[arg(long, value_name = "N", help_heading = "Keep rules")]
    pub keep_yearly: Option<u32>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  hvbak manager-prune --dry-run\n  hvbak manager-prune --keep-daily 14 --keep-monthly 12\n\nRules of the command line replace all of the configuration's [retention]."
)]
pub struct ManagerPruneArgs {
    /// Only points of this manager (repeatable)
    #[arg(value_name = "FQDN")]
    pub manager: Vec<String>,
    #[command(flatten)]
    pub keep: KeepArgs,
    /// Show what would be removed
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Needs no engine: it knows the VMs that have points, and those at which the last run failed or\nwas stopped. How old points may be says the configuration, [report] and each policy. Exit 3 when\none is older, 15 when one cannot be read or was found damaged.\n\nExamples:\n  hvbak report\n  hvbak report --max-age 26h --quiet || echo 'backups are late'\n  hvbak report --html /srv/www/backups.html\n  hvbak report --prometheus /var/lib/prometheus/node-exporter/hvbak.prom\n  hvbak report --json | jq -r 'select(.type == \"vm\") | [.name, .newest.age_seconds] | @tsv'"
)]
pub struct ReportArgs {
    /// Only this VM (repeatable)
    #[arg(long, value_name = "NAME|ID")]
    pub vm: Vec<String>,
    /// Exit 3 when a VM has no point younger than this (26h, 90m), instead of what the
    /// configuration says
    #[arg(long, value_name = "AGE")]
    pub max_age: Option<jiff::SignedDuration>,
    /// Also write a page for browsers; `-`: only that, on stdout
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Also write a file for node_exporter's textfile collector; `-`: only that, on stdout
    #[arg(long, value_name = "FILE")]
    pub prometheus: Option<PathBuf>,
}
