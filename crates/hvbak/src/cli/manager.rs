//! What is typed after `hvbak manager-backup` and `hvbak manager-verify`.

use std::path::PathBuf;

use clap::Args;

use super::CompressorArg;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  hvbak manager-verify /backup/engine.backup --json\n  hvbak manager-verify engine.example.com@latest\n  hvbak manager-verify engine.example.com --identity /media/usb/hvbak.key\n  age -d hvbak.key.age | hvbak manager-verify engine.example.com --identity -\n\nOf an encrypted archive without --identity only the stored bytes are compared with their sum\n(exit code 3)."
)]
pub struct ManagerVerifyArgs {
    /// Archive files (which need no configuration), or points: FQDN, FQDN@latest,
    /// FQDN@20261121T021454Z, FQDN@2026-11-21
    #[arg(required = true, value_name = "FILE|POINT")]
    pub archives: Vec<PathBuf>,
    #[command(flatten)]
    pub key: IdentityArg,
}

/// The private key for archives that are encrypted.
#[derive(Debug, Args)]
pub struct IdentityArg {
    /// Private key that opens encrypted archives: a file of `age-keygen`, or an SSH key without
    /// a passphrase; `-` for the standard input
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  hvbak manager-backup\n  hvbak manager-backup --scope=files --scope=db\n  hvbak manager-backup --small-size\n  hvbak manager-backup --plain-dump dwhdb --db-compressor dwhdb=xz"
)]
pub struct ManagerBackupArgs {
    /// What to back up (repeatable): all, files, db, dwhdb, cinderlibdb, managedblockdb,
    /// keycloakdb, grafanadb, reportsdb
    #[arg(long, value_name = "SCOPE", default_value = "all")]
    pub scope: Vec<String>,
    /// Smallest archive: xz everywhere, and engine and Data Warehouse as SQL text (see
    /// --plain-dump)
    #[arg(long, help_heading = "Format")]
    pub small_size: bool,
    /// Compressor of the archive
    #[arg(long, value_enum, help_heading = "Format")]
    pub archive_compressor: Option<CompressorArg>,
    /// Compressor of the configuration files within it
    #[arg(long, value_enum, help_heading = "Format")]
    pub files_compressor: Option<CompressorArg>,
    /// Compressor of a database's dump (repeatable): gzip, bzip2, xz, none; pg_dump's own format
    /// is compressed already
    #[arg(long, value_name = "SCOPE=KIND", help_heading = "Format")]
    pub db_compressor: Vec<String>,
    /// Dump a database as SQL text (repeatable). `engine-backup --mode=verify` refuses such an
    /// archive although it is whole, permissions in the database are not in it, and it is
    /// restored by one process
    #[arg(long, value_name = "SCOPE", help_heading = "Format")]
    pub plain_dump: Vec<String>,
}
