//! `dwh move-service` to a second machine: real sshd twice, a real PostgreSQL; systemctl is a
//! stand-in on both.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, sync::Arc, time::Instant};

use hvbak_run::{
    DwhServiceOptions, DwhServiceRevertOptions, HostOverride, ManagerContext, RunError,
    dwh_move_database, dwh_move_service, dwh_revert_database, dwh_revert_service, dwh_service_plan,
};

use crate::{
    dwh::{
        BACK, DWHD, NEW, OLD, PATIENCE, Site as Database, Watch, all_text, end_service, service,
    },
    sshd::{Setup, Sshd, current_user, free_port},
    stage::{fixture, text},
};

const SETUP: &str = "etc/ovirt-engine-setup.conf.d/20-setup-ovirt-post.conf";
const DIR: &str = "etc/ovirt-engine-dwh/ovirt-engine-dwhd.conf.d";

const THERE: DwhServiceRevertOptions =
    DwhServiceRevertOptions { machine_is_lost: false, dry_run: false, patience: PATIENCE };
const LOOK: DwhServiceRevertOptions = DwhServiceRevertOptions { dry_run: true, ..THERE };
const LOST: DwhServiceRevertOptions = DwhServiceRevertOptions { machine_is_lost: true, ..THERE };

/// A manager whose Data Warehouse's database was moved, and a machine for its service.
struct Site {
    base: Database,
    new: Sshd,
    before: Vec<(String, Vec<u8>)>,
}

impl Drop for Site {
    fn drop(&mut self) {
        end_service(&self.new.root());
    }
}

fn installed(root: &Path) {
    let dir = root.join("usr/share/ovirt-engine-dwh/services/ovirt-engine-dwhd");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("ovirt-engine-dwhd.conf"), "").unwrap();
}

fn files(root: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for dir in [DIR, "etc/ovirt-engine/engine.conf.d", "etc/ovirt-engine-setup.conf.d"] {
        for entry in fs::read_dir(root.join(dir)).into_iter().flatten() {
            let path = entry.unwrap().path();
            all.push((path.display().to_string(), fs::read(path).unwrap()));
        }
    }
    all.sort();
    all
}

impl Site {
    async fn new() -> Option<Self> {
        let base = Database::new()?;
        base.postgres.sql(
            "engine",
            "alter table dwh_history_timekeeping add var_datetime timestamptz;
             alter table dwh_history_timekeeping owner to engine;
             create function UpdateDwhHistoryTimekeeping(n varchar, v varchar, d timestamptz) returns void language sql as 'update dwh_history_timekeeping set var_value = v, var_datetime = d where var_name = n'",
        );
        let root = base.stage.sshd.root();
        fs::create_dir_all(root.join(SETUP).parent().unwrap()).unwrap();
        let setup = "OVESETUP_ENGINE_CORE/enable=bool:True\nOVESETUP_DWH_CORE/enable=bool:True\n";
        fs::write(root.join(SETUP), setup).unwrap();
        fs::write(root.join(DIR).join("10-setup-scale.conf"), "DWH_TABLES_KEEP_DAILY=7\n").unwrap();
        fs::write(root.join("play/units/ovirt-engine-dwhd.enabled"), "").unwrap();
        installed(&root);
        let new = Sshd::with(Setup { host_root: true, ..Setup::default() });
        new.authorize(&fs::read_to_string(base.stage.sshd.path().join("key.pub")).unwrap());
        installed(&new.root());
        let systemctl = new.root().join("usr/bin/systemctl");
        fs::create_dir_all(systemctl.parent().unwrap()).unwrap();
        fs::copy(fixture("stand-in-systemctl.sh"), &systemctl).unwrap();
        fs::set_permissions(systemctl, fs::Permissions::from_mode(0o755)).unwrap();
        service(&new.root(), &base.postgres.bin.join("psql"));
        fs::write(new.root().join("etc/hostname"), "dwh.example.test\n").unwrap();
        // Of each machine's packages: neither copied nor in the way.
        for root in [&root, &new.root()] {
            fs::create_dir_all(root.join(DIR)).unwrap();
            fs::write(root.join(DIR).join("10-scl-postgres-10.conf"), "SCL=1\n").unwrap();
        }
        let mut site = Self { base, new, before: Vec::new() };
        let context = site.context();
        let error = dwh_move_service(&context, &site.options()).await.unwrap_err();
        assert!(text(&error).contains("is on the manager still"), "{}", text(&error));
        dwh_move_database(&context, &site.base.to("new")).await.unwrap();
        site.before = files(&root);
        Some(site)
    }

    fn context(&self) -> ManagerContext {
        let mut context = self.base.stage.context();
        let mut settings = hvbak_run::Settings::clone(&context.settings);
        let host = HostOverride {
            address: Some("127.0.0.1".into()),
            port: Some(self.new.port),
            user: Some(current_user()),
            host_key: Some(self.new.host_key("ed25519")),
        };
        settings.hosts.insert("dwh1".into(), host);
        context.settings = Arc::new(settings);
        context
    }

    fn options(&self) -> DwhServiceOptions {
        DwhServiceOptions {
            to: "dwh1".into(),
            engine_host: Some("127.0.0.2".into()),
            patience: PATIENCE,
        }
    }

    fn is_active(&self) -> (bool, bool) {
        let there = self.new.root().join("play/units/ovirt-engine-dwhd.active").exists();
        (self.base.is_active(), there)
    }

    fn registered(&self) -> String {
        let sql = "select var_value from dwh_history_timekeeping where var_name = 'dwhHostname'";
        let done = self.base.postgres.psql("engine", sql);
        String::from_utf8(done.stdout).unwrap().trim().to_owned()
    }

    #[track_caller]
    fn check_as_before(&self) {
        assert!(files(&self.base.stage.sshd.root()) == self.before, "files of the manager");
        assert_eq!(files(&self.new.root()).len(), 1, "files of the new machine");
        assert_eq!((self.is_active(), self.registered()), ((true, false), "e".into()));
        let enabled = |root: &Path| root.join("play/units/ovirt-engine-dwhd.enabled").exists();
        assert!(enabled(&self.base.stage.sshd.root()) && !enabled(&self.new.root()));
        self.base.check_swept();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_moves_with_its_identity_and_comes_back_byte_for_byte() {
    let Some(site) = Site::new().await else { return };
    let (context, options) = (site.context(), site.options());
    let watch = Watch::start();
    let plan = dwh_service_plan(&context, &options).await.unwrap();
    assert!(plan.is_clear() && plan.files.len() == 3, "{plan:?}");
    let told = serde_json::to_string(&plan).unwrap();
    assert!(told.contains("OVESETUP_DWH_CORE/enable=bool:False") && !told.contains(NEW), "{told}");
    site.check_as_before();

    let done = dwh_move_service(&context, &options).await.unwrap();
    watch.saw_nothing();
    assert_eq!((done.to.as_str(), site.is_active()), ("dwh.example.test", (false, true)));
    assert_eq!(site.registered(), "dwh.example.test");
    let root = site.new.root();
    let read = |name: &str| fs::read_to_string(root.join(DIR).join(name)).unwrap();
    let database = read("10-setup-database.conf");
    assert!(database.contains("ENGINE_DB_HOST=\"127.0.0.2\"\n"), "{database}");
    assert!(database.contains("//127.0.0.2:") && database.contains("DWH_DB_DATABASE=\"new\""));
    assert_eq!(read("10-setup-uuid.conf"), "DWH_UUID=u-1\n");
    assert_eq!(read("10-setup-scale.conf"), "DWH_TABLES_KEEP_DAILY=7\n");
    let mode = fs::metadata(root.join(DIR).join("10-setup-database.conf")).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    let setup = site.base.stage.on_manager(SETUP).unwrap();
    assert!(
        setup.contains("DWH_CORE/enable=bool:False")
            && setup.contains("ENGINE_CORE/enable=bool:True")
    );
    let stored = all_text(site.base.stage.repository.path());
    assert!(!stored.contains(NEW) && !stored.contains(&OLD[..5]));
    let told = site.base.stage.ears.0.lock().unwrap().join("\n");
    assert!(told.contains("still counts it as running (DwhCurrentlyRunning)"), "{told}");
    assert!(!told.contains(NEW) && !told.contains(&OLD[..5]), "{told}");

    // Twice, or the database under it: refused.
    for error in [
        dwh_move_service(&context, &options).await.unwrap_err(),
        dwh_revert_database(&context, &BACK).await.unwrap_err(),
        dwh_move_database(&context, &site.base.to("new")).await.unwrap_err(),
    ] {
        assert!(matches!(error, RunError::DwhOther { .. }), "{error:?}");
    }
    let scale = root.join(DIR).join("10-setup-scale.conf");
    fs::write(&scale, "changed\n").unwrap();
    let error = dwh_revert_service(&context, &THERE).await.unwrap_err();
    assert!(text(&error).contains("changed by somebody else"), "{}", text(&error));
    assert_eq!(site.is_active(), (false, true));
    fs::write(&scale, "DWH_TABLES_KEEP_DAILY=7\n").unwrap();
    dwh_revert_service(&context, &LOOK).await.unwrap();
    assert_eq!(site.is_active(), (false, true));
    dwh_revert_service(&context, &THERE).await.unwrap();
    site.check_as_before();
    dwh_revert_database(&context, &BACK).await.unwrap();
    assert_eq!(fs::read(site.base.stage.sshd.root().join(DWHD)).unwrap(), site.base.before[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_changed_while_anything_stops_the_move_of_the_service() {
    let Some(site) = Site::new().await else { return };
    let root = site.new.root();
    let active = root.join("play/units/ovirt-engine-dwhd.active");
    let package =
        root.join("usr/share/ovirt-engine-dwh/services/ovirt-engine-dwhd/ovirt-engine-dwhd.conf");
    let conf = root.join(DIR).join("10-setup-database.conf");
    let setup = root.join(SETUP);
    fs::create_dir_all(active.parent().unwrap()).unwrap();
    fs::create_dir_all(conf.parent().unwrap()).unwrap();
    fs::create_dir_all(setup.parent().unwrap()).unwrap();
    let refused = async |options: &DwhServiceOptions, expected: &str| {
        let error = dwh_move_service(&site.context(), options).await.unwrap_err();
        assert!(matches!(error, RunError::DwhPreflight { .. }), "{error:?}");
        assert!(text(&error).contains(expected), "{expected}: {}", text(&error));
    };
    let good = site.options();
    for (path, content, expected) in [
        (&active, "", "a Data Warehouse is at work on dwh.example.test"),
        (&conf, "X=1\n", "has 10-setup-database.conf"),
        (&setup, "OVESETUP_ENGINE_CORE/enable=bool:True\n", "an engine is set up"),
    ] {
        fs::write(path, content).unwrap();
        refused(&good, expected).await;
        fs::remove_file(path).unwrap();
    }
    fs::remove_file(&package).unwrap();
    refused(&good, "has no ovirt-engine-dwh").await;
    fs::write(&package, "").unwrap();
    let none = DwhServiceOptions { engine_host: None, ..site.options() };
    refused(&none, "no name was given").await;
    let wrong = DwhServiceOptions { engine_host: Some("127.0.0.1x".into()), ..site.options() };
    refused(&wrong, "does not answer").await;
    let late = site.base.stage.sshd.root().join(DIR).join("99-local.conf");
    fs::write(&late, "ENGINE_DB_HOST=localhost\n").unwrap();
    refused(&good, "99-local.conf sets ENGINE_DB_HOST").await;
    fs::remove_file(late).unwrap();
    // The engine's database counts one as running, and it is not here.
    let here = site.base.stage.sshd.root().join("play/units/ovirt-engine-dwhd.active");
    fs::remove_file(&here).unwrap();
    refused(&good, "says that a Data Warehouse is at work, and it is not on the manager").await;
    fs::write(&here, "").unwrap();
    site.base.postgres.sql(
        "engine",
        "update dwh_history_timekeeping set var_value = 'x' where var_name = 'dwhUuid'",
    );
    refused(&good, "is not the one that works for this engine").await;
    site.check_as_before();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_of_the_service_that_dies_anywhere_goes_on_or_is_put_back() {
    let Some(site) = Site::new().await else { return };
    let begun = Instant::now();
    dwh_move_service(&site.context(), &site.options()).await.unwrap();
    let whole = begun.elapsed();
    dwh_revert_service(&site.context(), &THERE).await.unwrap();
    site.check_as_before();
    const MOMENTS: u32 = 6;
    for n in 1..=MOMENTS {
        let (context, options) = (site.context(), site.options());
        let moving = tokio::spawn(async move { dwh_move_service(&context, &options).await });
        tokio::time::sleep(whole * n / (MOMENTS + 1)).await;
        moving.abort();
        let _ = moving.await;
        assert_ne!(site.is_active(), (true, true), "moment {n}: two at work");
        if n % 2 == 0 {
            match dwh_move_service(&site.context(), &site.options()).await {
                Ok(_) => {}
                // It had ended.
                Err(RunError::DwhOther { what, .. }) if what.contains("already") => {}
                Err(error) => panic!("moment {n}: {}", text(&error)),
            }
            assert_eq!(site.is_active(), (false, true), "moment {n}");
        }
        match dwh_revert_service(&site.context(), &THERE).await {
            Ok(_) => {}
            Err(RunError::DwhNone { .. }) if n % 2 == 1 => {}
            Err(error) => panic!("moment {n}: {}", text(&error)),
        }
        site.check_as_before();
    }
}

/// A client that ends with the test.
struct Psql(std::process::Child);

impl Drop for Psql {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A session of the service's role from another address, through a proxy that binds it.
async fn session_from(site: &Site, address: &str) -> (Psql, tokio::task::JoinHandle<()>) {
    let port = site.base.postgres.port;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap().port();
    let from: std::net::SocketAddr = format!("{address}:0").parse().unwrap();
    let proxy = tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind(from).unwrap();
            let to = format!("127.0.0.1:{port}").parse().unwrap();
            let mut far = socket.connect(to).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
        }
    });
    let mut command = std::process::Command::new(site.base.postgres.bin.join("psql"));
    command
        .env("PGPASSWORD", NEW)
        .args(["-Xw", "-h", "127.0.0.1", "-p", &at.to_string(), "-U", "dwh_new", "-d", "new"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null());
    let psql = Psql(command.spawn().unwrap());
    let there = format!("select count(*) from pg_stat_activity where client_addr = '{address}'");
    for _ in 0..100 {
        if site.base.postgres.psql("new", &there).stdout == b"1\n" {
            return (psql, proxy);
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("no session from {address}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_comes_back_from_a_machine_that_is_lost_and_from_no_other() {
    let Some(site) = Site::new().await else { return };
    dwh_move_service(&site.context(), &site.options()).await.unwrap();
    let refused = async |context: &ManagerContext, expected: &str| {
        let error = dwh_revert_service(context, &LOST).await.unwrap_err();
        assert!(matches!(error, RunError::DwhNotLost { .. }), "{error:?}");
        assert!(text(&error).contains(expected), "{expected}: {}", text(&error));
        assert_eq!(site.is_active(), (false, true));
    };
    refused(&site.context(), "it answers").await;
    // One that shows another key, or does not let us in, is there as well.
    let mut strange = site.context();
    let mut settings = hvbak_run::Settings::clone(&strange.settings);
    let other = "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    settings.hosts.get_mut("dwh1").unwrap().host_key = Some(other.into());
    strange.settings = Arc::new(settings);
    refused(&strange, "does not match").await;
    let mut stranger = site.context();
    let mut settings = hvbak_run::Settings::clone(&stranger.settings);
    settings.hosts.get_mut("dwh1").unwrap().user = Some("nobody-here".into());
    stranger.settings = Arc::new(settings);
    refused(&stranger, "refused the login").await;
    // From here on nobody listens there.
    let mut away = site.context();
    let mut settings = hvbak_run::Settings::clone(&away.settings);
    settings.hosts.get_mut("dwh1").unwrap().port = Some(free_port());
    away.settings = Arc::new(settings);
    let error = dwh_revert_service(&away, &THERE).await.unwrap_err();
    assert!(text(&error).contains("log in"), "{}", text(&error));
    // Its sshd alone is dead: the service is seen in the database.
    site.base.postgres.admit("127.0.0.3");
    let (psql, proxy) = session_from(&site, "127.0.0.3").await;
    refused(&away, "worked on the database lately, from 127.0.0.3").await;
    drop(psql);
    proxy.abort();
    let there = files(&site.new.root());
    let dry = dwh_revert_service(&away, &DwhServiceRevertOptions { dry_run: true, ..LOST }).await;
    assert_eq!((dry.unwrap().left_there.len(), site.is_active()), (3, (false, true)));
    let done = dwh_revert_service(&away, &LOST).await.unwrap();
    assert!(done.files.is_empty() && done.left_there.len() == 3, "{done:?}");
    assert_eq!(files(&site.new.root()), there, "the lost machine was touched");
    assert!(files(&site.base.stage.sshd.root()) == site.before, "files of the manager");
    assert_eq!((site.base.is_active(), site.registered()), (true, "e".into()));
    let error = dwh_revert_service(&away, &LOST).await.unwrap_err();
    assert!(matches!(error, RunError::DwhNone { .. }), "{error:?}");
}
