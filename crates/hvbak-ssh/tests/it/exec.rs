//! Short commands: status, signals, caps, floods, and two connections side by side.

use std::time::Duration;

use hvbak_ssh::{Connection, Error, ExitStatus, probe, script};

use crate::support::{Setup, Sshd, current_user};

#[tokio::test(flavor = "multi_thread")]
async fn status_output_and_input() {
    let sshd = Sshd::start();
    let connection = Connection::connect(&sshd.target()).await.unwrap();
    let out = connection.exec("echo out; echo err >&2; exit 3").await.unwrap();
    assert_eq!((out.text().as_str(), out.stderr.as_str()), ("out", "err\n"));
    assert_eq!(out.status, ExitStatus::Code(3));
    let error = out.check("do it").unwrap_err();
    assert_eq!(error.to_string(), "cannot do it on hv1: exit status 3: err");

    let out = connection.exec("no-such-command-here").await.unwrap();
    assert_eq!(out.status, ExitStatus::Code(127));
    let out = connection.exec("kill -KILL $$").await.unwrap();
    assert_eq!(out.status, ExitStatus::Signal("KILL".into()));
    let out = connection.exec("kill -TERM $$").await.unwrap();
    assert_eq!(out.status, ExitStatus::Signal("TERM".into()));

    let data = vec![7_u8; 3 << 20];
    let out = connection.exec_with_stdin("wc -c", data.clone()).await.unwrap();
    assert_eq!(out.text().trim(), (3 << 20).to_string());
    // Input that nobody reads is no error and no hang.
    let out = connection.exec_with_stdin("exit 4", data).await.unwrap();
    assert_eq!(out.status, ExitStatus::Code(4));
    // Without input the command sees end-of-file at once.
    assert_eq!(connection.exec("cat; echo done").await.unwrap().text(), "done");

    let out = connection.exec(&script("printf '%s' \"$1\"", &["a'b $(id)\n"])).await.unwrap();
    assert_eq!(out.stdout, b"a'b $(id)\n");
    connection.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_output_is_capped_and_harmless() {
    let sshd = Sshd::start();
    let mut target = sshd.target();
    target.options.max_output = 1000;
    let connection = Connection::connect(&target).await.unwrap();
    let out = connection.exec("head -c 5000000 /dev/zero").await.unwrap();
    assert!(out.truncated && out.stdout.len() == 1000);
    assert!(out.text().chars().all(|c| c == '\u{fffd}'));
    let out = connection
        .exec("head -c 8000000 /dev/zero | tr '\\0' x >&2; printf '\\033[2J' >&2; exit 1")
        .await
        .unwrap();
    assert!(
        out.stderr.len() < 20_000 && out.stderr.ends_with("x\u{fffd}[2J"),
        "{}",
        out.stderr.len()
    );
    assert!(out.check("flood").unwrap_err().to_string().len() < 1000);
    connection.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_does_not_end_is_given_up() {
    let sshd = Sshd::start();
    let connection = Connection::connect(&sshd.target()).await.unwrap();
    // The commands tell their process ids, so that none is left sleeping.
    let pids = sshd.path().join("pids");
    let slow = format!("echo $$ >>{}; exec sleep 600", pids.display());
    let error = connection.exec_within(&slow, "", Duration::from_secs(3)).await.unwrap_err();
    assert!(matches!(error, Error::CommandTimeout { .. }) && error.retryable());
    // The connection lives on, also several commands at a time.
    let (a, b) = tokio::join!(connection.exec("echo a"), connection.exec("sleep 0.1; echo b"));
    assert_eq!((a.unwrap().text(), b.unwrap().text()), ("a".into(), "b".into()));
    // A background process that keeps the output open does not hold us for ever.
    let command = format!("sleep 600 & echo $! >>{}; echo started", pids.display());
    assert_eq!(connection.exec(&command).await.unwrap().text(), "started");
    let kill = format!("kill $(cat {})", pids.display());
    assert!(connection.exec(&kill).await.unwrap().status.success());
    connection.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unread_stream_cannot_freeze_commands() {
    // Pitfall: one undrained channel freezes its whole connection.
    let sshd = Sshd::start();
    let target = sshd.target();
    let bulk = Connection::connect(&target).await.unwrap();
    let control = Connection::connect(&target).await.unwrap();
    let process = bulk.spawn("cat /dev/zero").await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    // On the stream's own connection: refused at once instead of frozen.
    assert!(matches!(bulk.exec("true").await, Err(Error::Busy { .. })));
    assert!(matches!(bulk.spawn("true").await, Err(Error::Busy { .. })));
    for _ in 0..3 {
        assert_eq!(control.exec("echo free").await.unwrap().text(), "free");
    }
    // Once the stream has ended the connection is free again.
    drop(process);
    let free = async {
        while bulk.exec("true").await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), free).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_host_is() {
    let sshd = Sshd::with(Setup { host_root: true, ..Setup::default() });
    let connection = Connection::connect(&sshd.target()).await.unwrap();
    let info = probe(&connection).await.unwrap();
    assert_eq!(info.user, current_user());
    assert_eq!(info.host_root, sshd.root().to_str().unwrap());
    assert_eq!(info.arch, std::env::consts::ARCH);
    assert_eq!(info.client_address.as_deref(), Some("127.0.0.1"));
    assert!(info.tools.contains("sha256sum") && info.clock > 1_700_000_000);
    assert_eq!(info.installed_worker, None);
    let path = sshd.root().join("usr/libexec/hvbak");
    std::fs::create_dir_all(&path).unwrap();
    let worker = path.join("hvbak-worker");
    std::fs::write(&worker, "#!/bin/sh\necho hvbak-worker 9.9.9 protocol 7\n").unwrap();
    std::fs::set_permissions(&worker, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let info = probe(&connection).await.unwrap();
    assert_eq!(info.installed_worker.as_deref(), Some("hvbak-worker 9.9.9 protocol 7"));
    connection.close().await;
}
