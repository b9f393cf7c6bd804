//! Keys on hosts: installed, found again, rotated, revoked.

use std::{fs, os::unix::fs::PermissionsExt};

use hvbak_ssh::{
    Connection, Error, Identity, Russh, Target,
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
