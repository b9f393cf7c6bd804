//! `hvbak-lab`: brings the lab up and down, plays guest, orders faults.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser, Subcommand};
use hvbak_sim::{
    control,
    guest::Guest,
    guests::Guests,
    model::Lab,
    ops, replay, seed, server,
    storage::{Kind, run},
    sweep,
};
use serde_json::{Value, json};

/// A simulated oVirt engine with real SSH hosts and real disks, for tests and the demo
#[derive(Debug, Parser)]
#[command(name = "hvbak-lab", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Debug, Subcommand)]
enum Cmd {
    /// Start a lab; prints one line of JSON when it is ready
    Up(Up),
    /// Stop a lab and everything it started
    Down {
        #[arg(long)]
        dir: PathBuf,
    },
    /// Serve a recorded engine; prints one line of JSON
    Replay(Replay),
    /// Write as the guest
    GuestWrite {
        #[command(flatten)]
        disk: DiskArgs,
        #[arg(long, default_value_t = 0)]
        offset: u64,
        #[arg(long, default_value_t = 0)]
        length: u64,
        #[arg(long, conflicts_with_all = ["file", "random"])]
        pattern: Option<u8>,
        /// Bytes that do not compress, made from this number
        #[arg(long, conflicts_with = "file")]
        random: Option<u64>,
        #[arg(long)]
        file: Option<PathBuf>,
    },
    /// Save what the guest sees as a raw image, or compare it with one
    GuestRead {
        #[command(flatten)]
        disk: DiskArgs,
        #[arg(long)]
        output: Option<PathBuf>,
        #[arg(long)]
        compare: Option<PathBuf>,
        #[arg(long, default_value = "raw")]
        compare_format: String,
    },
    /// Print the SHA-256 of what the guest sees now
    GuestDigest {
        #[command(flatten)]
        disk: DiskArgs,
    },
    /// Discard as the guest
    GuestDiscard {
        #[command(flatten)]
        disk: DiskArgs,
        #[arg(long)]
        offset: u64,
        #[arg(long)]
        length: u64,
    },
    /// Write zeros as the guest
    GuestZero {
        #[command(flatten)]
        disk: DiskArgs,
        #[arg(long)]
        offset: u64,
        #[arg(long)]
        length: u64,
    },
    /// Order faults of the engine, hosts and storage
    Fault(Fault),
    /// Print what the lab holds, as JSON
    State {
        #[arg(long)]
        dir: PathBuf,
    },
    /// Print which LVs of disks are active on a host of a block domain, one a line
    Active {
        #[arg(long)]
        dir: PathBuf,
        #[arg(long)]
        host: String,
    },
    /// Print where a disk's volumes are, as JSON
    Locate {
        #[command(flatten)]
        disk: DiskArgs,
    },
}

#[derive(Debug, Args)]
struct Up {
    #[arg(long)]
    dir: PathBuf,
    #[arg(long, default_value_t = 2)]
    hosts: usize,
    #[arg(long, value_delimiter = ',', default_value = "nfs,gluster")]
    domains: Vec<String>,
    /// Inventory to start with
    #[arg(long)]
    seed: Option<PathBuf>,
    /// A domain whose files lie in a directory that something is mounted on: NAME=DIR
    #[arg(long = "mount", value_name = "NAME=DIR", value_parser = mount)]
    mounts: Vec<(String, PathBuf)>,
    /// How long the engine's operations take
    #[arg(long, default_value_t = 100)]
    delay_ms: u64,
    /// Accepted for scripts: the output is JSON anyway
    #[arg(long)]
    json: bool,
    /// Return when the lab is ready and leave it running
    #[arg(long)]
    detach: bool,
}

#[derive(Debug, Args)]
struct Replay {
    /// The recorded set
    #[arg(long)]
    dir: PathBuf,
    /// The table of requests and files; beside the set or above it without this
    #[arg(long)]
    manifest: Option<PathBuf>,
    /// Where CA, password and configuration are written
    #[arg(long)]
    out: PathBuf,
    #[arg(long, default_value_t = 0)]
    port: u16,
}

#[derive(Debug, Args)]
struct DiskArgs {
    #[arg(long)]
    dir: PathBuf,
    #[arg(long)]
    vm: String,
    #[arg(long)]
    disk: String,
}

#[derive(Debug, Args)]
struct Fault {
    #[arg(long)]
    dir: PathBuf,
    #[command(subcommand)]
    what: FaultCmd,
}

#[derive(Debug, Subcommand)]
enum FaultCmd {
    /// Answer requests wrongly: METHOD and part of the PATH
    Http {
        #[arg(long, default_value = "")]
        method: String,
        #[arg(long)]
        path: String,
        #[arg(long, default_value_t = 0)]
        status: u16,
        #[arg(long, default_value = "")]
        body: String,
        #[arg(long, default_value = "application/xml")]
        content_type: String,
        #[arg(long, default_value_t = 0)]
        delay_ms: u64,
        /// Break the connection instead of answering
        #[arg(long)]
        drop: bool,
        #[arg(long, default_value_t = 1)]
        times: u32,
    },
    /// snapshot-fails, snapshot-live-fails, freeze-fails, merge-fails, merge-breaks, merge-waits,
    /// disk-fails, move-makes-cow, move-preallocates, template-fails, template-waits
    Operation {
        name: String,
        #[arg(long, default_value_t = 1)]
        times: u32,
    },
    /// kill, start or change-key
    Host { name: String, action: String },
    /// The engine's status of a host
    HostStatus { name: String, status: String },
    /// What the engine tells of a domain's free space
    Space { domain: String, bytes: u64 },
    /// ok or illegal
    DiskStatus { disk: String, status: String },
    /// Delete the first snapshot whose description begins so, behind everybody's back
    DeleteSnapshot {
        #[arg(long)]
        vm: String,
        #[arg(long, default_value = "hvbak:")]
        description: String,
    },
    /// Let the account's role hold only these permits
    Permits { names: Vec<String> },
    /// Forget all logins
    ExpireTokens,
    /// Take all orders back
    Clear,
}

fn main() -> std::process::ExitCode {
    match execute(Cli::parse()) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn execute(cli: Cli) -> Result<()> {
    let call = |dir: &Path, q: Value| control::call(dir, &q);
    let print = |value: &Value| println!("{value}");
    match cli.command {
        Cmd::Up(up) if up.detach => detach(&up),
        Cmd::Up(up) => serve(&up),
        Cmd::Down { dir } => down(&dir),
        Cmd::Replay(args) => serve_replay(&args),
        Cmd::GuestWrite { disk, offset, length, pattern, random, file } => {
            let guest = find(&disk)?;
            match (file, pattern, random) {
                (Some(file), _, _) => guest.write_file(offset, &file),
                (_, Some(pattern), _) => guest.write(offset, length, pattern),
                (_, _, Some(seed)) => guest.write_random(offset, length, seed),
                _ => bail!("give --pattern, --random or --file"),
            }
        }
        Cmd::GuestDigest { disk } => {
            println!("{}", find(&disk)?.digest()?);
            Ok(())
        }
        Cmd::GuestRead { disk, output, compare, compare_format } => {
            let guest = find(&disk)?;
            if let Some(output) = output {
                guest.save(&output)?;
            }
            match compare {
                Some(other) => guest.compare(&other, &compare_format),
                None => Ok(()),
            }
        }
        Cmd::GuestDiscard { disk, offset, length } => find(&disk)?.zero(offset, length, true),
        Cmd::GuestZero { disk, offset, length } => find(&disk)?.zero(offset, length, false),
        Cmd::Fault(Fault { dir, what }) => call(&dir, order(what)).map(drop),
        Cmd::State { dir } => call(&dir, json!({ "op": "state" })).map(|v| print(&v)),
        Cmd::Active { dir, host } => {
            let guests = Guests::of(&dir).context("this lab has no block domain")?;
            print!("{}", guests.run(&host, "cd /dev && ls -d *-*-*-*-*/*-*-*-*-* || true")?);
            Ok(())
        }
        Cmd::Locate { disk } => {
            call(&disk.dir, json!({ "op": "locate", "vm": disk.vm, "disk": disk.disk }))
                .map(|v| print(&v))
        }
    }
}

fn find(args: &DiskArgs) -> Result<Guest> {
    Guest::find(&args.dir, &args.vm, &args.disk)
}

fn order(what: FaultCmd) -> Value {
    match what {
        FaultCmd::Http { method, path, status, body, content_type, delay_ms, drop, times } => {
            json!({
                "op": "http-fault",
                "fault": { "method": method, "path": path, "status": status, "body": body, "content_type": content_type, "delay_ms": delay_ms, "drop": drop, "times": times },
            })
        }
        FaultCmd::Operation { name, times } => {
            json!({ "op": "fault", "name": name, "times": times })
        }
        FaultCmd::Host { name, action } => json!({ "op": "host", "name": name, "action": action }),
        FaultCmd::HostStatus { name, status } => {
            json!({ "op": "host", "name": name, "action": "status", "status": status })
        }
        FaultCmd::Space { domain, bytes } => {
            json!({ "op": "domain-available", "name": domain, "bytes": bytes })
        }
        FaultCmd::DiskStatus { disk, status } => {
            json!({ "op": "disk-status", "disk": disk, "status": status })
        }
        FaultCmd::DeleteSnapshot { vm, description } => {
            json!({ "op": "delete-snapshot", "vm": vm, "description": description })
        }
        FaultCmd::Permits { names } => json!({ "op": "permits", "names": names }),
        FaultCmd::ExpireTokens => json!({ "op": "expire-tokens" }),
        FaultCmd::Clear => json!({ "op": "clear" }),
    }
}

/// Starts itself in the background and passes its one line on.
fn detach(up: &Up) -> Result<()> {
    fs::create_dir_all(&up.dir)?;
    let log = fs::File::create(up.dir.join("lab.log"))?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["up", "--dir"]).arg(&up.dir);
    command.args(["--hosts", &up.hosts.to_string(), "--domains", &up.domains.join(",")]);
    command.args(["--delay-ms", &up.delay_ms.to_string()]);
    if let Some(seed) = &up.seed {
        command.arg("--seed").arg(seed);
    }
    for (name, dir) in &up.mounts {
        let mut word = std::ffi::OsString::from(format!("{name}="));
        word.push(dir);
        command.arg("--mount").arg(word);
    }
    // A session of its own: Ctrl-C in the terminal is not for the lab.
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).process_group(0).spawn()?;
    let mut line = String::new();
    let stdout = child.stdout.take().context("stdout")?;
    BufReader::new(stdout).read_line(&mut line)?;
    if line.is_empty() {
        let status = child.wait()?;
        bail!("the lab did not start ({status}): {}", fs::read_to_string(up.dir.join("lab.log"))?);
    }
    print!("{line}");
    Ok(())
}

fn down(dir: &Path) -> Result<()> {
    let dir = &dir.canonicalize().with_context(|| dir.display().to_string())?;
    // Read first: a lab that ends well takes the file along.
    let text = fs::read_to_string(dir.join("lab.pid"));
    let called = control::call(dir, &json!({ "op": "down" }));
    let Ok(text) = text else { return called.map(drop) };
    let pid = text.trim().parse::<i32>().context("lab.pid")?;
    // A lab that answered is ending; one that did not was killed, and its number may be
    // somebody else's by now.
    if called.is_ok() {
        let deadline = Instant::now() + Duration::from_secs(20);
        while sweep::alive(pid) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        ensure!(!sweep::alive(pid), "the lab does not end; its process is {pid}");
    }
    sweep::sweep(dir);
    for name in ["control.sock", "lab.pid"] {
        let _ = fs::remove_file(dir.join(name));
    }
    Ok(())
}

fn log() {
    tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).init();
    let _ = rustls::crypto::ring::default_provider().install_default();
}

fn say(value: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}")?;
    Ok(out.flush()?)
}

fn serve(up: &Up) -> Result<()> {
    log();
    fs::create_dir_all(&up.dir)?;
    let dir = up.dir.canonicalize()?;
    ensure!(!dir.join("bootstrap_key").exists(), "a lab is or was here; use another directory");
    fs::write(dir.join("lab.pid"), std::process::id().to_string())?;
    let served = serve_in(up, &dir);
    // Also what a start that failed half-way has left.
    sweep::sweep(&dir);
    let _ = fs::remove_file(dir.join("lab.pid"));
    served?;
    // Threads that still work on the storage have nobody to tell.
    std::process::exit(0);
}

fn serve_in(up: &Up, dir: &Path) -> Result<()> {
    let key = dir.join("bootstrap_key");
    run(Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "bootstrap", "-f"])
        .arg(&key))?;
    let authorized = fs::read_to_string(dir.join("bootstrap_key.pub"))?;
    let kinds = kinds(&up.domains)?;
    let mut state = seed::infrastructure(dir, up.hosts.max(1), &kinds, &up.mounts, &authorized)?;
    let described = match &up.seed {
        None if kinds.contains(&Kind::Block) => seed::block_seed(),
        None => seed::default_seed(),
        Some(file) => serde_json::from_slice(&fs::read(file)?)
            .with_context(|| format!("read {}", file.display()))?,
    };
    let running = seed::populate(&mut state, &described)?;
    let certificates = server::certificates()?;
    let password = uuid::Uuid::new_v4().simple().to_string();
    let lab = Arc::new(Lab::new(
        dir.to_owned(),
        password,
        Duration::from_millis(up.delay_ms),
        certificates.ca.clone(),
        state,
    ));
    for vm in running {
        ops::start(&lab, vm).map_err(|e| anyhow::anyhow!("start {vm}: {e:?}"))?;
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    while lab.state().vms.iter().any(|v| v.status == "powering_up") {
        ensure!(Instant::now() < deadline, "VMs do not start");
        std::thread::sleep(Duration::from_millis(10));
    }
    control::listen(lab.clone())?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let address = server::serve(&certificates, 0, server::lab_handler(lab.clone())).await?;
        let ends = Ends::catch()?;
        say(&files(&lab, address.port())?)?;
        ends.wait().await;
        anyhow::Ok(())
    })?;
    control::shutdown(&lab);
    Ok(())
}

/// The signals that end a lab. Caught from here on: whoever reads the line that says the
/// lab is ready may end it at once.
struct Ends {
    int: tokio::signal::unix::Signal,
    term: tokio::signal::unix::Signal,
}

impl Ends {
    fn catch() -> Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { int: signal(SignalKind::interrupt())?, term: signal(SignalKind::terminate())? })
    }

    async fn wait(mut self) {
        tokio::select! {
            _ = self.int.recv() => {}
            _ = self.term.recv() => {}
        }
    }
}

fn mount(text: &str) -> Result<(String, PathBuf), String> {
    let (name, dir) = text.split_once('=').ok_or("give NAME=DIR")?;
    let dir = Path::new(dir).canonicalize().map_err(|e| format!("{dir}: {e}"))?;
    Ok((name.to_owned(), dir))
}

fn kinds(names: &[String]) -> Result<Vec<Kind>> {
    names
        .iter()
        .map(|name| match name.as_str() {
            "nfs" => Ok(Kind::Nfs),
            "gluster" => Ok(Kind::Gluster),
            "localfs" => Ok(Kind::Local),
            "block" if names.len() == 1 => Ok(Kind::Block),
            "block" => bail!("a lab has file domains or one block domain, not both"),
            other => bail!("`{other}` is no kind of domain"),
        })
        .collect()
}

fn secret(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o600))?)
}

fn config(dir: &Path, url: &str) -> Result<PathBuf> {
    let file = dir.join("hvbak.toml");
    let text = format!(
        "[engine]\nurl = \"{url}\"\nca_file = \"ca.pem\"\nusername = \"admin@internal\"\npassword_file = \"engine.password\"\n\n[repository]\npath = \"repository\"\n\n[ssh]\nuser = \"{}\"\nkey_file = \"id_hvbak\"\n",
        user()?
    );
    fs::write(&file, text)?;
    Ok(file)
}

fn user() -> Result<String> {
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid())?;
    Ok(user.context("the current user has no name")?.name)
}

/// Writes CA, password and configuration, and describes the lab.
fn files(lab: &Lab, port: u16) -> Result<Value> {
    let dir = &lab.dir;
    fs::write(dir.join("ca.pem"), &lab.ca_pem)?;
    secret(&dir.join("engine.password"), &format!("{}\n", lab.password))?;
    let url = format!("https://localhost:{port}/ovirt-engine/api");
    let config = config(dir, &url)?;
    let user = user()?;
    let s = lab.state();
    Ok(json!({
        "engine_url": url,
        "ca_file": dir.join("ca.pem"),
        "username": lab.username,
        "password_file": dir.join("engine.password"),
        "hvbak_config": config,
        "bootstrap_key": dir.join("bootstrap_key"),
        "hosts": s.hosts.iter().map(|h| json!({ "id": h.id, "name": h.name, "address": "127.0.0.1", "port": h.port, "user": user, "key": dir.join("bootstrap_key"), "root": h.root })).collect::<Vec<_>>(),
        "storage_domains": s.domains.iter().map(|d| json!({ "id": d.id, "name": d.name, "type": d.kind.word(), "data_center": d.data_center, "path": d.root() })).collect::<Vec<_>>(),
        "vms": s.vms.iter().map(|v| json!({ "id": v.id, "name": v.name, "status": v.status })).collect::<Vec<_>>(),
        "pid": std::process::id(),
    }))
}

fn serve_replay(args: &Replay) -> Result<()> {
    log();
    fs::create_dir_all(&args.out)?;
    let out = args.out.canonicalize()?;
    let certificates = server::certificates()?;
    fs::write(out.join("ca.pem"), &certificates.ca)?;
    secret(&out.join("engine.password"), "recorded\n")?;
    let handler = replay::handler(&args.dir.canonicalize()?, args.manifest.as_deref())?;
    tokio::runtime::Runtime::new()?.block_on(async {
        let address = server::serve(&certificates, args.port, handler).await?;
        let url = format!("https://localhost:{}/ovirt-engine/api", address.port());
        let config = config(&out, &url)?;
        let ends = Ends::catch()?;
        say(&json!({ "engine_url": url, "ca_file": out.join("ca.pem"), "hvbak_config": config, "pid": std::process::id() }))?;
        ends.wait().await;
        Ok(())
    })
}
