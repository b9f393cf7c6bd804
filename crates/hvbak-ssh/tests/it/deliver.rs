//! The worker on its way: installed, pushed, damaged, refused, removed.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use hvbak_ssh::{
    Connection, Error, HostInfo,
    deliver::{
        WorkerMode, WorkerSource, ensure_worker, list_command, push_dir, remove_command,
        remove_worker, worker_line,
    },
    probe,
};

use crate::support::{Setup, Sshd};

fn lab_host() -> Sshd {
    Sshd::with(Setup { host_root: true, ..Setup::default() })
}

/// A stand-in for the static binary, large enough not to fit one window.
fn program(sshd: &Sshd, version: &str) -> PathBuf {
    let path = sshd.path().join("local-worker");
    let body = format!(
        "#!/bin/sh\n[ \"$1\" = --version ] && {{ echo '{version}'; exit 0; }}\necho \"ran $*\"\nexit 0\n"
    );
    let mut bytes = body.into_bytes();
    bytes.resize(3 << 20, b'#');
    fs::write(&path, bytes).unwrap();
    path
}

fn source(binary: Option<PathBuf>, mode: WorkerMode) -> WorkerSource {
    WorkerSource { mode, binary, tag: "job-1".into(), protocol: 1 }
}

async fn open(sshd: &Sshd) -> (Connection, HostInfo) {
    let connection = Connection::connect(&sshd.target()).await.unwrap();
    let info = probe(&connection).await.unwrap();
    (connection, info)
}

#[tokio::test(flavor = "multi_thread")]
async fn pushed_checked_run_and_removed() {
    let sshd = lab_host();
    let (connection, info) = open(&sshd).await;
    let binary = program(&sshd, "hvbak-worker 0.1.0 protocol 1");
    let from = source(Some(binary.clone()), WorkerMode::Auto);
    let worker = ensure_worker(&connection, &info, &from).await.unwrap();
    assert_eq!(worker.version, "hvbak-worker 0.1.0 protocol 1");
    let dir = sshd.root().join("run/hvbak-job-1");
    assert_eq!(push_dir(&info, "job-1").unwrap(), dir.to_str().unwrap());
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
    let hash = blake3::hash(&fs::read(&binary).unwrap()).to_hex();
    assert!(worker.path.ends_with(&format!("-{}", &hash[..16])), "{}", worker.path);
    assert_eq!(fs::metadata(&worker.path).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::read(&worker.path).unwrap(), fs::read(&binary).unwrap());
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
    let out = connection.exec(&worker_line(&worker, &["serve", "a b"])).await.unwrap();
    assert_eq!(out.text(), "ran serve a b");
    assert_eq!(connection.exec(&list_command(&info)).await.unwrap().text(), "hvbak-job-1");

    // Once more with the same tag is the same place.
    assert_eq!(ensure_worker(&connection, &info, &from).await.unwrap().path, worker.path);
    remove_worker(&connection, &worker).await.unwrap();
    assert!(!dir.exists());
    // What the journal would run later: nothing there is no error.
    let undo = remove_command(&info, "job-1").unwrap();
    assert!(connection.exec(&undo).await.unwrap().status.success());
    assert_eq!(connection.exec(&list_command(&info)).await.unwrap().text(), "");
    connection.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_was_tampered_with_is_never_run() {
    let sshd = lab_host();
    // A host whose `cat` changes what it stores stands for a bad path or a full disk.
    let bin = sshd.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let ran = sshd.path().join("ran");
    // Only what goes into a file: shell profiles evaluate the output of `cat`.
    let lie = format!("[ ! -f /proc/self/fd/1 ] || echo 'echo yes > {}'", ran.display());
    fs::write(bin.join("cat"), format!("#!/bin/sh\n/bin/cat\n{lie}\n")).unwrap();
    fs::set_permissions(bin.join("cat"), fs::Permissions::from_mode(0o755)).unwrap();
    let (connection, info) = open(&sshd).await;
    connection.close().await;
    let tampering = Sshd::with(Setup {
        config: format!(
            "SetEnv HVBAK_HOST_ROOT={} PATH={}:/usr/bin:/bin",
            sshd.root().display(),
            bin.display()
        ),
        ..Setup::default()
    });
    let connection = Connection::connect(&tampering.target()).await.unwrap();
    let binary = program(&sshd, "hvbak-worker 0.1.0 protocol 1");
    let error = ensure_worker(&connection, &info, &source(Some(binary), WorkerMode::Push))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::UploadDamaged { .. }) && error.retryable(), "{error:?}");
    assert!(!ran.exists());
    assert!(!sshd.root().join("run/hvbak-job-1").exists());
    connection.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_not_ours_is_not_used() {
    let sshd = lab_host();
    let (connection, info) = open(&sshd).await;
    let binary = program(&sshd, "hvbak-worker 0.1.0 protocol 1");
    let dir = sshd.root().join("run/hvbak-job-1");
    let elsewhere = sshd.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::set_permissions(&elsewhere, fs::Permissions::from_mode(0o700)).unwrap();
    for trap in ["open", "link"] {
        if trap == "open" {
            fs::create_dir(&dir).unwrap();
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
        } else {
            std::os::unix::fs::symlink(&elsewhere, &dir).unwrap();
        }
        let from = source(Some(binary.clone()), WorkerMode::Push);
        let error = ensure_worker(&connection, &info, &from).await.unwrap_err();
        assert!(matches!(error, Error::Command { .. }), "{trap}: {error:?}");
        assert!(error.to_string().contains("not ours"), "{error}");
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
        let _ = fs::remove_dir_all(&dir);
        let _ = fs::remove_file(&dir);
    }
    connection.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_versions_and_programs_that_do_not_run() {
    let sshd = lab_host();
    let (connection, info) = open(&sshd).await;
    let dir = sshd.root().join("run/hvbak-job-1");
    let old = program(&sshd, "hvbak-worker 0.0.1 protocol 9");
    let error =
        ensure_worker(&connection, &info, &source(Some(old), WorkerMode::Auto)).await.unwrap_err();
    assert!(error.to_string().contains("protocol 9"), "{error}");
    assert!(!dir.exists());

    let broken = sshd.path().join("broken");
    fs::write(&broken, "#!/no/such/interpreter\n").unwrap();
    let error = ensure_worker(&connection, &info, &source(Some(broken), WorkerMode::Push))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::WorkerRefused { .. }) && error.hint().is_some(), "{error:?}");
    assert!(!dir.exists());

    let mut foreign = b"\x7fELF\x02\x01".to_vec();
    foreign.resize(64, 0);
    foreign[18] = if cfg!(target_arch = "x86_64") { 183 } else { 62 };
    let path = sshd.path().join("foreign");
    fs::write(&path, foreign).unwrap();
    let error =
        ensure_worker(&connection, &info, &source(Some(path), WorkerMode::Push)).await.unwrap_err();
    assert!(error.to_string().contains("local worker is for"), "{error}");

    let missing = source(Some("/nonexistent/worker".into()), WorkerMode::Push);
    assert!(matches!(
        ensure_worker(&connection, &info, &missing).await,
        Err(Error::LocalWorker { .. })
    ));
    for mode in [WorkerMode::Installed, WorkerMode::Auto] {
        let error = ensure_worker(&connection, &info, &source(None, mode)).await.unwrap_err();
        assert!(matches!(error, Error::NoWorker { .. }), "{error:?}");
    }
    connection.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_installed_worker_wins_when_it_fits() {
    let sshd = lab_host();
    let path = sshd.root().join("usr/libexec/hvbak");
    fs::create_dir_all(&path).unwrap();
    let installed = path.join("hvbak-worker");
    let binary = program(&sshd, "hvbak-worker 0.1.0 protocol 1");
    fs::copy(&binary, &installed).unwrap();
    fs::set_permissions(&installed, fs::Permissions::from_mode(0o755)).unwrap();
    let (connection, info) = open(&sshd).await;
    let worker = ensure_worker(&connection, &info, &source(None, WorkerMode::Auto)).await.unwrap();
    assert_eq!((worker.path.as_str(), &worker.remove), (installed.to_str().unwrap(), &None));
    assert_eq!(connection.exec(&worker_line(&worker, &["x"])).await.unwrap().text(), "ran x");
    // Another protocol: pushed instead, or said.
    let mut wants = source(Some(binary.clone()), WorkerMode::Installed);
    wants.protocol = 2;
    let error = ensure_worker(&connection, &info, &wants).await.unwrap_err();
    assert!(error.to_string().contains("installed is `hvbak-worker 0.1.0 protocol 1`"), "{error}");
    program(&sshd, "hvbak-worker 0.2.0 protocol 2");
    wants.mode = WorkerMode::Auto;
    let worker = ensure_worker(&connection, &info, &wants).await.unwrap();
    assert!(worker.remove.is_some() && worker.path.contains("/run/hvbak-job-1/"));
    remove_worker(&connection, &worker).await.unwrap();
    connection.close().await;
}
