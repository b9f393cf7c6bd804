//! Keys on hosts: installed, found again, rotated, revoked.

use std::{fs, os::unix::fs::PermissionsExt};

use hvbak_ssh::{
    Connection, Error, Identity, Russh, SudoRight, Target,
    deliver::{WorkerMode, WorkerSource, ensure_worker, remove_worker, worker_line},
    enroll::{self, Change, Grant, KeyKind, Revoke, SudoScope},
    probe,
};

use crate::support::{Setup, Sshd, current_user};

const TAG: &str = "hvbak:3b097026-0000-4000-8000-000000000001";

fn lab_host() -> Sshd {
    Sshd::with(Setup { host_root: true, ..Setup::default() })
}

fn new_key(sshd: &Sshd, name: &str) -> (Grant, Target) {
    let path = sshd.path().join(name);
    let key = enroll::generate_key(KeyKind::default(), &path, None, "x").unwrap();
    let mut target = sshd.target();
    target.identity = vec![Identity::key_file(path)];
    (Grant { key, from: vec!["127.0.0.1".into(), "::1".into()], tag: TAG.into() }, target)
}

#[tokio::test(flavor = "multi_thread")]
async fn install_prove_repeat_revoke() {
    let sshd = lab_host();
    let file = sshd.authorized_keys();
    // What others wrote stays as it is, whatever it looks like.
    let before = format!(
        "# the engine's key\n\n  {}command=\"/bin/x \\\"y\\\"\",no-pty ssh-rsa AAAA other hvbak:else\n\\t %s\n# {TAG}",
        fs::read_to_string(&file).unwrap()
    );
    fs::write(&file, &before).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();

    let boot = Connection::connect(&sshd.target()).await.unwrap();
    let info = probe(&boot).await.unwrap();
    let (grant, target) = new_key(&sshd, "ours");
    assert!(matches!(enroll::prove(&Russh, &target).await.unwrap_err(), Error::AuthRefused { .. }));
    let user = current_user();
    let user = Some(user.as_str());
    assert_eq!(enroll::install(&boot, &info, user, &grant).await.unwrap(), Change::Installed);
    enroll::prove(&Russh, &target).await.unwrap();
    let after = fs::read_to_string(&file).unwrap();
    assert_eq!(after, format!("{before}\n{}\n", grant.line().unwrap()));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);

    // Again: nothing. With another `from`: replaced, not doubled.
    assert_eq!(enroll::install(&boot, &info, None, &grant).await.unwrap(), Change::Unchanged);
    assert_eq!(fs::read_to_string(&file).unwrap(), after);
    let far = Grant { from: vec!["192.0.2.1".into()], ..grant.clone() };
    assert_eq!(enroll::install(&boot, &info, None, &far).await.unwrap(), Change::Replaced);
    assert_eq!(fs::read_to_string(&file).unwrap().matches(TAG).count(), 2);
    // `from=` is obeyed: this key no longer works from here.
    assert!(matches!(enroll::prove(&Russh, &target).await.unwrap_err(), Error::AuthRefused { .. }));
    enroll::install(&boot, &info, None, &grant).await.unwrap();

    // `restrict` is obeyed: no forwarding with this key.
    let mut through = sshd.target();
    through.jump = Some(Box::new(target.clone()));
    let error = Connection::connect(&through).await.unwrap_err();
    assert!(matches!(error, Error::Forward { .. }), "{error:?}");

    let tag = Revoke::Tag(TAG.into());
    assert_eq!(enroll::revoke(&boot, &info, None, &tag).await.unwrap(), 1);
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("{before}\n"));
    assert_eq!(enroll::revoke(&boot, &info, None, &tag).await.unwrap(), 0);
    assert!(enroll::prove(&Russh, &target).await.unwrap_err().is_login());
    // Nothing else lies about.
    let left: Vec<_> = fs::read_dir(file.parent().unwrap()).unwrap().collect();
    assert_eq!(left.len(), 1);
    boot.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_key_makes_the_directory() {
    let sshd = lab_host();
    let boot = Connection::connect(&sshd.target()).await.unwrap();
    let info = probe(&boot).await.unwrap();
    let (grant, target) = new_key(&sshd, "ours");
    let dir = sshd.root().join("root/.ssh");
    fs::remove_dir_all(&dir).unwrap();
    let none = enroll::revoke(&boot, &info, None, &Revoke::Tag(TAG.into())).await.unwrap();
    assert_eq!((none, dir.exists()), (0, false));
    assert_eq!(enroll::install(&boot, &info, None, &grant).await.unwrap(), Change::Installed);
    let mode = |p: &std::path::Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&dir), mode(&dir.join("authorized_keys"))), (0o700, 0o600));
    enroll::prove(&Russh, &target).await.unwrap();

    // A link in place of the file is not followed and not replaced.
    let real = sshd.path().join("elsewhere");
    fs::rename(dir.join("authorized_keys"), &real).unwrap();
    std::os::unix::fs::symlink(&real, dir.join("authorized_keys")).unwrap();
    let error = enroll::install(&boot, &info, None, &grant).await.unwrap_err();
    assert!(error.to_string().contains("symbolic link"), "{error}");
    boot.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_keeps_the_old_key_until_the_new_one_is_proven() {
    let sshd = lab_host();
    let boot = Connection::connect(&sshd.target()).await.unwrap();
    let info = probe(&boot).await.unwrap();
    let (old, old_target) = new_key(&sshd, "old");
    let (new, new_target) = new_key(&sshd, "new");
    enroll::install(&boot, &info, None, &old).await.unwrap();
    let session = Connection::connect(&old_target).await.unwrap();
    let gone = Revoke::Key(old.key.clone());

    // The new key does not work from here: everything stays as it was.
    let before = fs::read_to_string(sshd.authorized_keys()).unwrap();
    let useless = Grant { from: vec!["192.0.2.1".into()], ..new.clone() };
    let error = enroll::rotate(&Russh, &session, &info, &new_target, &useless, &gone).await;
    let error = error.unwrap_err();
    assert!(matches!(error, Error::RotateProof { .. }) && error.is_login(), "{error:?}");
    assert_eq!(fs::read_to_string(sshd.authorized_keys()).unwrap(), before);

    enroll::rotate(&Russh, &session, &info, &new_target, &new, &gone).await.unwrap();
    enroll::prove(&Russh, &new_target).await.unwrap();
    assert!(enroll::prove(&Russh, &old_target).await.unwrap_err().is_login());
    session.close().await;
    boot.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sudo_for_a_login_that_is_not_root() {
    let sshd = lab_host();
    let boot = Connection::connect(&sshd.target()).await.unwrap();
    let info = probe(&boot).await.unwrap();
    let file = sshd.root().join("etc/sudoers.d/hvbak");
    let bad = enroll::install_sudoers(&boot, &info, "a b", SudoScope::All).await;
    assert!(matches!(bad, Err(Error::BadValue { .. })));
    assert!(!enroll::remove_sudoers(&boot, &info).await.unwrap());
    if !info.tools.contains("visudo") {
        let error = enroll::install_sudoers(&boot, &info, "hv", SudoScope::All).await.unwrap_err();
        assert!(error.to_string().contains("sudo is not installed"), "{error}");
        assert!(fs::read_dir(file.parent().unwrap()).unwrap().next().is_none());
        eprintln!("SKIPPED: no visudo here, the sudo rule itself was not tried");
        return;
    }
    let scope = SudoScope::InstalledWorker;
    assert_eq!(
        enroll::install_sudoers(&boot, &info, "hv", scope).await.unwrap(),
        Change::Installed
    );
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o440);
    assert!(fs::read_to_string(&file).unwrap().contains("NOPASSWD: /usr/libexec/hvbak/"));
    assert_eq!(
        enroll::install_sudoers(&boot, &info, "hv", scope).await.unwrap(),
        Change::Unchanged
    );
    assert_eq!(
        enroll::install_sudoers(&boot, &info, "hv", SudoScope::All).await.unwrap(),
        Change::Replaced
    );
    assert!(enroll::remove_sudoers(&boot, &info).await.unwrap());
    assert!(fs::read_dir(file.parent().unwrap()).unwrap().next().is_none());
    boot.close().await;
}

/// A stand-in for the worker that says who it is.
const WORKER: &str = "#!/bin/sh\n\
    case $1 in --version) echo hvbak-worker 0.1.0 protocols 1 ;; *) id -u ;; esac\n";

/// A machine with an ordinary user `hv`, seen by one sshd alone. The user's home and the
/// directories that would change are mounts of that sshd.
fn host_with_user() -> Option<(Sshd, tempfile::TempDir)> {
    if current_user() != "root" {
        eprintln!("SKIPPED: another user needs root and a mount namespace");
        return None;
    }
    let home = tempfile::Builder::new().prefix("hvbak-home-").tempdir().unwrap();
    let add = |file: &str, line: &str| format!("{}{line}\n", fs::read_to_string(file).unwrap());
    let sshd = Sshd::with(Setup {
        config: format!(
            "Match User hv\n  AuthorizedKeysFile {}/.ssh/authorized_keys\nMatch all",
            home.path().display()
        ),
        files: vec![
            (
                "passwd",
                add("/etc/passwd", &format!("hv:x:61234:61234::{}:/bin/sh", home.path().display())),
                0o644,
            ),
            ("worker", WORKER.into(), 0o755),
            ("group", add("/etc/group", "hv:x:61234:"), 0o644),
            ("shadow", add("/etc/shadow", "hv:*:19000::::::"), 0o600),
        ],
        namespace: Some(
            "for f in passwd group shadow; do mount --bind $D/$f /etc/$f; done\n\
             mount -t tmpfs -o mode=755 tmpfs /run\nmkdir /run/sshd\n\
             if [ -d /etc/sudoers.d ]; then mount --bind $D/root/etc/sudoers.d /etc/sudoers.d; fi\n\
             mkdir $D/layer; mount -t tmpfs tmpfs $D/layer; mkdir $D/layer/up $D/layer/work\n\
             o=lowerdir=/usr/libexec,upperdir=$D/layer/up,workdir=$D/layer/work\n\
             mount -t overlay -o $o overlay /usr/libexec\n\
             mkdir -p /usr/libexec/hvbak; cp $D/worker /usr/libexec/hvbak/hvbak-worker"
                .into(),
        ),
        ..Setup::default()
    });
    std::os::unix::fs::chown(home.path(), Some(61234), Some(61234)).unwrap();
    Some((sshd, home))
}

#[tokio::test(flavor = "multi_thread")]
async fn root_enrols_a_user_who_becomes_root_by_sudo() {
    let Some((sshd, home)) = host_with_user() else { return };
    let boot = Connection::connect(&sshd.target()).await.unwrap();
    let root = probe(&boot).await.unwrap();
    assert_eq!((root.uid, root.host_root.as_str()), (0, ""));
    let (grant, mut target) = new_key(&sshd, "ours");
    target.user = "hv".into();
    let change = enroll::install(&boot, &root, Some("hv"), &grant).await.unwrap();
    assert_eq!(change, Change::Installed);
    let file = home.path().join(".ssh/authorized_keys");
    let meta = fs::metadata(&file).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&meta), 61234);
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    enroll::prove(&Russh, &target).await.unwrap();
    let error = enroll::install(&boot, &root, Some("nobody-here"), &grant).await.unwrap_err();
    assert!(error.to_string().contains("no user nobody-here"), "{error}");

    let own = Connection::connect(&target).await.unwrap();
    let info = probe(&own).await.unwrap();
    assert_eq!((info.uid, info.user.as_str(), info.sudo), (61234, "hv", SudoRight::None));
    // Without sudo the installed worker runs as the user, and a push says why it cannot be.
    let source = WorkerSource {
        mode: WorkerMode::Push,
        binary: Some(sshd.path().join("worker")),
        tag: "job-1".into(),
        protocol: 1,
    };
    let error = ensure_worker(&own, &info, &source).await.unwrap_err();
    assert!(error.to_string().contains("cannot be made"), "{error}");

    if root.tools.contains("visudo") {
        with_sudo(&boot, &own, &source).await;
    } else {
        eprintln!("SKIPPED: no sudo on this machine, the rest was not tried");
    }
    let tag = Revoke::Tag(TAG.into());
    assert_eq!(enroll::revoke(&boot, &root, Some("hv"), &tag).await.unwrap(), 1);
    assert!(enroll::prove(&Russh, &target).await.unwrap_err().is_login());
    own.close().await;
    boot.close().await;
}

/// The rest where sudo is there: the rule, what it gives, a push as root, and the end.
async fn with_sudo(boot: &Connection, own: &Connection, source: &WorkerSource) {
    let root = probe(boot).await.unwrap();
    for (scope, right) in
        [(SudoScope::InstalledWorker, SudoRight::Worker), (SudoScope::All, SudoRight::All)]
    {
        enroll::install_sudoers(boot, &root, "hv", scope).await.unwrap();
        let info = probe(own).await.unwrap();
        assert_eq!(info.sudo, right);
        // Either is enough for the installed worker.
        let installed = WorkerSource { mode: WorkerMode::Auto, binary: None, ..source.clone() };
        let worker = ensure_worker(own, &info, &installed).await.unwrap();
        assert_eq!(own.exec(&worker_line(&worker, &["who"])).await.unwrap().text(), "0");
    }
    let info = probe(own).await.unwrap();
    let pushed = ensure_worker(own, &info, source).await.unwrap();
    assert!(pushed.command.starts_with("exec sudo -n /run/hvbak-job-1/"), "{}", pushed.command);
    assert_eq!(own.exec(&worker_line(&pushed, &["who"])).await.unwrap().text(), "0");
    remove_worker(own, &pushed).await.unwrap();
    assert!(boot.exec("test ! -e /run/hvbak-job-1").await.unwrap().status.success());
    // With sudo the user enrols as root would.
    assert!(enroll::remove_sudoers(own, &info).await.unwrap());
    assert_eq!(probe(own).await.unwrap().sudo, SudoRight::None);
}
