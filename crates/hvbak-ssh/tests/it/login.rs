//! Proving who we are: key kinds, passphrases, agent, password, and refusals.

use std::{
    io::BufRead,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use hvbak_ssh::{Connection, Error, Identity, Target, enroll};
use hvbak_types::Secret;

use crate::support::{Reaped, Setup, Sshd, current_user, keygen};

async fn works(target: &Target) {
    let connection = Connection::connect(target).await.unwrap();
    assert_eq!(connection.exec("echo hello").await.unwrap().text(), "hello");
    connection.close().await;
}

fn public(path: &Path) -> String {
    let mut name = path.as_os_str().to_owned();
    name.push(".pub");
    std::fs::read_to_string(name).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_and_own_keys_of_every_kind() {
    let sshd = Sshd::start();
    let mut target = sshd.target();
    for kind in ["ecdsa", "ed25519", "rsa"] {
        let path = sshd.path().join(format!("user_{kind}"));
        keygen(&path, kind, "");
        sshd.authorize(&public(&path));
        target.identity = vec![Identity::key_file(path)];
        works(&target).await;
    }
    for kind in [enroll::KeyKind::EcdsaP256, enroll::KeyKind::Ed25519, enroll::KeyKind::Rsa3072] {
        let path = sshd.path().join(format!("own_{kind:?}"));
        let line = enroll::generate_key(kind, &path, None, "hvbak@test").unwrap();
        assert!(line.ends_with(" hvbak@test"), "{line}");
        assert_eq!(public(&path).trim(), line);
        assert_eq!(enroll::public_key(&path).unwrap(), line);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        // OpenSSH's own tool reads it and sees the same public half.
        let out = Command::new("ssh-keygen").args(["-y", "-f"]).arg(&path).output().unwrap();
        assert!(out.status.success());
        assert!(line.starts_with(
            String::from_utf8(out.stdout).unwrap().trim_end_matches(" hvbak@test\n").trim()
        ));
        sshd.authorize(&line);
        target.identity = vec![Identity::key_file(path.clone())];
        works(&target).await;
        // Never overwritten.
        assert!(matches!(
            enroll::generate_key(kind, &path, None, "x"),
            Err(Error::KeyCreate { .. })
        ));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn passphrases() {
    let sshd = Sshd::start();
    let theirs = sshd.path().join("locked");
    keygen(&theirs, "ecdsa", "open sesame");
    sshd.authorize(&public(&theirs));
    let ours = sshd.path().join("own");
    let secret = Secret::new("open sesame");
    let line = enroll::generate_key(enroll::KeyKind::EcdsaP256, &ours, Some(&secret), "c").unwrap();
    sshd.authorize(&line);
    assert_eq!(enroll::public_key(&ours).unwrap(), line);
    for path in [theirs, ours] {
        let mut target = sshd.target();
        let mut with = |passphrase: Option<&str>| {
            target.identity = vec![Identity::KeyFile {
                path: path.clone(),
                passphrase: passphrase.map(Secret::new),
            }];
            target.clone()
        };
        works(&with(Some("open sesame"))).await;
        let error = Connection::connect(&with(Some("wrong"))).await.unwrap_err();
        assert!(matches!(error, Error::KeyPassphrase { .. }), "{error:?}");
        let error = Connection::connect(&with(None)).await.unwrap_err();
        assert!(matches!(error, Error::KeyLocked { .. }), "{error:?}");
        assert!(error.is_login() && !format!("{error:?}").contains("sesame"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unusable_keys_are_named() {
    let sshd = Sshd::start();
    let mut target = sshd.target();
    target.identity = vec![Identity::key_file(sshd.path().join("missing"))];
    assert!(matches!(Connection::connect(&target).await, Err(Error::KeyFile { .. })));
    let open = sshd.path().join("open");
    std::fs::copy(sshd.path().join("key"), &open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o644)).unwrap();
    target.identity = vec![Identity::key_file(&open)];
    let error = Connection::connect(&target).await.unwrap_err();
    assert!(matches!(error, Error::KeyMode { mode: 0o644, .. }), "{error:?}");
    std::fs::write(&open, "no key").unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert!(matches!(Connection::connect(&target).await, Err(Error::KeyFile { .. })));
    // A key that cannot be used does not hide one that can.
    target.identity.push(Identity::key_file(sshd.path().join("key")));
    works(&target).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_login_tells_what_was_tried() {
    let sshd = Sshd::start();
    let stranger = sshd.path().join("stranger");
    keygen(&stranger, "ecdsa", "");
    let mut target = sshd.target();
    target.identity =
        vec![Identity::key_file(&stranger), Identity::Password(Secret::new("hunter2"))];
    let error = Connection::connect(&target).await.unwrap_err();
    let Error::AuthRefused { user, tried, allowed, .. } = &error else { panic!("{error:?}") };
    assert_eq!(*user, current_user());
    assert!(tried[0].contains("ecdsa-sha2-nistp256") && tried[0].contains("stranger"));
    assert_eq!(*allowed, ["publickey"]);
    assert!(error.is_login() && !format!("{error:?} {error}").contains("hunter2"));
    target.identity.clear();
    assert!(matches!(Connection::connect(&target).await, Err(Error::AuthRefused { .. })));
}

/// A real ssh-agent with one key of each kind.
fn agent(sshd: &Sshd, keys: &[&Path]) -> (Reaped, std::path::PathBuf) {
    let socket = sshd.path().join("agent");
    let mut child = Command::new("ssh-agent")
        .args(["-D", "-a"])
        .arg(&socket)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    for key in keys {
        let status = Command::new("ssh-add")
            .arg("-q")
            .arg(key)
            .env("SSH_AUTH_SOCK", &socket)
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
    }
    (Reaped(child), socket)
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_an_agent() {
    let sshd = Sshd::start();
    let (other, rsa) = (sshd.path().join("other"), sshd.path().join("rsa"));
    keygen(&other, "ed25519", "");
    keygen(&rsa, "rsa", "");
    sshd.authorize(&public(&rsa));
    let (_agent, socket) = agent(&sshd, &[&other, &rsa]);
    let mut target = sshd.target();
    target.identity = vec![Identity::Agent { socket: Some(socket) }];
    works(&target).await;
    // The RSA key was signed with SHA-2.
    assert!(sshd.log().contains("Accepted publickey"), "{}", sshd.log());
    target.identity = vec![Identity::Agent { socket: Some("/nonexistent".into()) }];
    assert!(matches!(Connection::connect(&target).await, Err(Error::Agent { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_opens_real_sshd() {
    // The shadow file with our password is seen by this sshd alone.
    if current_user() != "root" {
        eprintln!("SKIPPED: passwords of a real sshd need root and a mount namespace");
        return;
    }
    let hash = Command::new("openssl").args(["passwd", "-6", "correct horse"]).output().unwrap();
    let hash = String::from_utf8(hash.stdout).unwrap();
    let shadow = format!("root:{}:19000:0:99999:7:::\nsshd:!:19000::::::\n", hash.trim());
    // By the password method, and as a question of PAM.
    let question = "UsePAM yes\nKbdInteractiveAuthentication yes\nPasswordAuthentication no";
    for config in ["PasswordAuthentication yes", question] {
        if config == question && !Path::new("/etc/pam.d/sshd").exists() {
            eprintln!("SKIPPED: no PAM here, keyboard-interactive was not tried");
            continue;
        }
        let sshd = Sshd::with(Setup {
            config: config.into(),
            files: vec![("shadow", shadow.clone(), 0o600)],
            namespace: Some("mount --bind $D/shadow /etc/shadow".into()),
            ..Setup::default()
        });
        let mut target = sshd.target();
        target.identity = vec![Identity::Password(Secret::new("correct horse"))];
        works(&target).await;
        target.identity = vec![Identity::Password(Secret::new("battery staple"))];
        let error = Connection::connect(&target).await.unwrap_err();
        let Error::AuthRefused { tried, .. } = &error else { panic!("{error:?}") };
        let last = if config == question { "keyboard-interactive" } else { "password" };
        assert!(tried.iter().any(|t| t == last), "{tried:?}");
        assert!(!format!("{error:?} {error}").contains("staple"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_and_a_mute_peer() {
    let mut target = Target::new("hv1", "127.0.0.1", "root");
    target.port = crate::support::free_port();
    let error = Connection::connect(&target).await.unwrap_err();
    assert!(matches!(error, Error::Connect { .. }) && error.retryable(), "{error:?}");
    target.host = "no-such-host.invalid".into();
    assert!(matches!(Connection::connect(&target).await, Err(Error::Resolve { .. })));
    // Something listens and says nothing.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    target.host = "127.0.0.1".into();
    target.port = mute.local_addr().unwrap().port();
    target.options.connect_timeout = Duration::from_millis(300);
    let error = Connection::connect(&target).await.unwrap_err();
    assert!(matches!(error, Error::ConnectTimeout { phase: "key exchange", .. }), "{error:?}");
    // Something that is no SSH server.
    let web = std::thread::spawn({
        let mute = mute.try_clone().unwrap();
        move || {
            use std::io::Write;
            for _ in 0..2 {
                let (mut stream, _) = mute.accept().unwrap();
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
            }
        }
    });
    target.options.connect_timeout = Duration::from_secs(5);
    assert!(Connection::connect(&target).await.is_err());
    drop(web);
}
