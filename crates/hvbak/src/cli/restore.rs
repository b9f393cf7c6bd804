//! What is typed after `hvbak restore`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::POINT_HELP;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  hvbak restore web1@latest --name web1-copy --disconnected\n  hvbak restore web1@2026-11-21 --storage-domain fast --power-on\n  hvbak restore db1 --disk db1_data --storage-domain db1_data:slow --format cow\n  hvbak restore web1 db1@2026-11-20 --name '{name}-test' --nic-profile none\n  hvbak restore --all --map dr-site.toml --dry-run\n  hvbak restore web1@2026-11-21 --overwrite --dry-run\n  hvbak restore web1@2026-11-21 --overwrite --confirm web1\n  hvbak restore web1@2026-11-21 --as-template web1-golden\n\nA file for --map (what is typed counts before it):\n  name = \"{name}\"\n  [clusters]\n  \"Default\" = \"dr-cluster\"\n  [storage_domains]\n  \"data1\" = \"dr-data\"\n  [vnic_profiles]\n  \"ovirtmgmt/ovirtmgmt\" = \"dr-net/dr-net\"      # or \"none\"\n  [vms.\"web1\"]\n  name = \"web1-dr\"                              # also cluster, storage_domain, skip,\n  disconnected = true                           # power_on, exclude_disks, only_nics\n  [vms.\"web1\".disks.\"web1_data\"]\n  storage_domain = \"dr-slow\"                    # also name, format, interface, active, bootable\n  [vms.\"web1\".nics.\"nic1\"]\n  mac = \"56:6f:00:00:00:01\"                     # also profile, linked"
)]
pub struct RestoreArgs {
    #[arg(help = POINT_HELP, required_unless_present = "all")]
    pub points: Vec<String>,
    /// Each VM's newest point, in the order of the runbook; VMs that exist, and names that others have, are left alone
    #[arg(long, conflicts_with = "points")]
    pub all: bool,
    /// With --all: the newest point up to this day (in UTC), as 2026-11-20
    #[arg(long, value_name = "DAY", requires = "all")]
    pub until: Option<jiff::civil::Date>,
    /// File with what another site calls clusters, domains and networks, and with what is
    /// different about single VMs
    #[arg(long, value_name = "FILE")]
    pub map: Option<PathBuf>,
    /// Of several points, restore the others when some cannot be
    #[arg(long)]
    pub keep_going: bool,
    /// Name of the restored VM; {name} and {point} in it stand for the stored ones
    #[arg(long)]
    pub name: Option<String>,
    /// Make a template of this name instead of a VM; {name} and {point} in it stand for the
    /// stored ones. A VM is made first, copied by the engine, and deleted: until then the disks
    /// take their room twice. A template's point becomes a template without this option, too
    #[arg(long, value_name = "NAME", conflicts_with_all = ["name", "as_vm", "power_on"])]
    pub as_template: Option<String>,
    /// Make a VM of a template's point
    #[arg(long)]
    pub as_vm: bool,
    /// Cluster for the VM
    #[arg(long, value_name = "NAME|ID")]
    pub cluster: Option<String>,
    /// Domain for all disks, or for one as DISK:DOMAIN
    #[arg(long, value_name = "[DISK:]DOMAIN")]
    pub storage_domain: Vec<String>,
    /// Only these disks, by alias or id
    #[arg(long, value_name = "ALIAS|ID")]
    pub disk: Vec<String>,
    /// All disks but these
    #[arg(long, value_name = "ALIAS|ID")]
    pub exclude_disk: Vec<String>,
    /// Another alias for a disk, as DISK:NAME (repeatable)
    #[arg(long, value_name = "DISK:NAME")]
    pub disk_name: Vec<String>,
    /// The disk to boot from, instead of the one that was
    #[arg(long, value_name = "ALIAS|ID")]
    pub boot: Option<String>,
    /// Attach this disk without activating it (repeatable)
    #[arg(long, value_name = "ALIAS|ID")]
    pub inactive: Vec<String>,
    /// Format of the new disks; as backed up when not given
    #[arg(long, value_enum)]
    pub format: Option<DiskFormatArg>,
    /// Interface of the disks
    #[arg(long, value_enum)]
    pub interface: Option<InterfaceArg>,
    /// Whether NICs are made
    #[arg(long, value_enum, default_value = "keep")]
    pub nic: NicArg,
    /// Only this NIC, by name (repeatable)
    #[arg(long, value_name = "NAME", conflicts_with = "nic")]
    pub only_nic: Vec<String>,
    /// vNIC profile of all NICs, as NETWORK/PROFILE; none: no network
    #[arg(long, value_name = "PROFILE")]
    pub nic_profile: Option<String>,
    /// MAC addresses; without it stored ones are kept only when the original VM is gone and the name stays
    #[arg(long, value_enum)]
    pub mac: Option<MacArg>,
    /// Make the NICs unplugged from the network
    #[arg(long)]
    pub disconnected: bool,
    /// Replace the VM that the point came from, which must be down: it is deleted when the
    /// restored one stands, and that gets its name, MAC addresses and disks that are not restored
    #[arg(long, conflicts_with_all = ["all", "map", "name", "as_template", "as_vm"])]
    pub overwrite: bool,
    /// With --overwrite: the name of the VM that is to be deleted, instead of typing it when asked
    #[arg(long, value_name = "NAME", requires = "overwrite")]
    pub confirm: Option<String>,
    /// Restore a stored configuration (config:VM): a VM without any disk
    #[arg(long, conflicts_with_all = ["all", "overwrite", "as_template", "as_vm", "power_on"])]
    pub config_only: bool,
    /// Start the VM when all is done
    #[arg(long)]
    pub power_on: bool,
    /// Write through this host
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,
    /// Print the plan and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum DiskFormatArg {
    RawSparse,
    RawPreallocated,
    Cow,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum InterfaceArg {
    Virtio,
    VirtioScsi,
    Sata,
    Ide,
}

#[derive(Debug, Clone, Copy, ValueEnum, PartialEq, Eq)]
pub enum NicArg {
    Keep,
    None,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum MacArg {
    Keep,
    New,
}
