//! What is typed after `hvbak backup` besides VMs.

use clap::Args;

#[derive(Debug, Args, Default)]
pub struct TemplateArgs {
    /// Store templates themselves (repeatable). Their disks never change: one whose disks are in
    /// a point already is not read again, unless with --level full
    #[arg(long, value_name = "NAME|ID|GLOB")]
    pub save_template: Vec<String>,
}
