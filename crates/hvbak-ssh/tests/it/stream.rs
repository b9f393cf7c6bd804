//! Byte streams: whole, broken, abandoned.

use std::time::{Duration, Instant};

use bytes::Bytes;
use hvbak_ssh::{Connection, Error, ExitStatus};
use nix::sys::signal::Signal;

use crate::support::Sshd;

/// Nothing here may hang; far more than a loaded machine needs.
const PATIENCE: Duration = Duration::from_secs(60);

async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("hangs")
}

/// A piece whose content depends on its place.
fn piece(n: u64) -> Bytes {
    let mut data = vec![0_u8; 1 << 20];
    blake3::Hasher::new().update(&n.to_le_bytes()).finalize_xof().fill(&mut data);
    Bytes::from(data)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_mebibytes_both_ways_at_once() {
    let sshd = Sshd::start();
    let connection = Connection::connect(&sshd.target()).await.unwrap();
    let (mut stdin, mut stdout, exit) = connection.spawn("cat; exit 5").await.unwrap().split();
    let writer = tokio::spawn(async move {
        let mut hash = blake3::Hasher::new();
        for n in 0..100 {
            let data = piece(n);
            hash.update(&data);
            stdin.write_all(data).await.unwrap();
        }
        stdin.finish().await.unwrap();
        hash.finalize()
    });
    let mut hash = blake3::Hasher::new();
    let mut total = 0;
    while let Some(data) = soon(stdout.recv()).await.unwrap() {
        hash.update(&data);
        total += data.len();
    }
    assert_eq!(total, 100 << 20);
    assert_eq!(writer.await.unwrap(), hash.finalize());
    assert_eq!(soon(exit.wait()).await.unwrap(), ExitStatus::Code(5));
    connection.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writing_to_a_command_that_ends_is_an_error_not_a_hang() {
    // Pitfall: the writer waits for a window that never comes.
    let sshd = Sshd::start();
    let connection = Connection::connect(&sshd.target()).await.unwrap();
    for command in ["echo no space left >&2; exit 28", "head -c 100000 >/dev/null; exit 28"] {
        let mut process = soon(connection.spawn(command)).await.unwrap();
        let mut result = Ok(());
        for n in 0..200 {
            result = soon(process.stdin.write_all(piece(n % 2))).await;
            if result.is_err() {
                break;
            }
        }
        let Err(Error::CommandGone { status, stderr, .. }) = result else { panic!("{result:?}") };
        assert_eq!(status, Some(ExitStatus::Code(28)));
        assert!(command.starts_with("head") || stderr == "no space left", "{stderr}");
        assert_eq!(soon(process.wait()).await.unwrap(), ExitStatus::Code(28));
    }
    connection.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_errors_does_not_stop_the_stream() {
    let sshd = Sshd::start();
    let connection = Connection::connect(&sshd.target()).await.unwrap();
    let command = "head -c 30000000 /dev/zero >&2 & head -c 5000000 /dev/zero; wait; echo last >&2";
    let (stdin, mut stdout, exit) = connection.spawn(command).await.unwrap().split();
    let mut total = 0;
    while let Some(data) = soon(stdout.recv()).await.unwrap() {
        total += data.len();
    }
    assert_eq!(total, 5_000_000);
    let tail = async {
        while !exit.stderr_tail().ends_with("last\n") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon(tail).await;
    drop(stdin);
    assert_eq!(soon(exit.wait()).await.unwrap(), ExitStatus::Code(0));
    connection.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_session_is_an_error_on_both_sides() {
    let sshd = Sshd::start();
    let target = sshd.target();
    // Reading.
    let connection = Connection::connect(&target).await.unwrap();
    let mut process = connection.spawn("cat /dev/zero").await.unwrap();
    for _ in 0..100 {
        assert!(soon(process.stdout.recv()).await.unwrap().is_some());
    }
    sshd.signal_sessions(Signal::SIGKILL);
    let started = Instant::now();
    let error = loop {
        match soon(process.stdout.recv()).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a cut stream looks finished"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::ConnectionLost { .. }) && error.retryable(), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(20));
    assert!(matches!(soon(process.wait()).await, Err(Error::ConnectionLost { .. })));
    assert!(connection.is_closed());
    assert!(matches!(soon(connection.exec("true")).await, Err(Error::ConnectionLost { .. })));

    // Writing.
    let connection = Connection::connect(&target).await.unwrap();
    let mut process = connection.spawn("cat >/dev/null").await.unwrap();
    soon(process.stdin.write_all(piece(0))).await.unwrap();
    sshd.signal_sessions(Signal::SIGKILL);
    let error = loop {
        if let Err(error) = soon(process.stdin.write_all(piece(1))).await {
            break error;
        }
    };
    assert!(matches!(error, Error::ConnectionLost { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_host_is_noticed_by_keepalives() {
    let sshd = Sshd::start();
    let mut target = sshd.target();
    target.options.keepalive = Duration::from_millis(200);
    let connection = Connection::connect(&target).await.unwrap();
    let mut process = connection.spawn("cat").await.unwrap();
    // Idle for longer than all keepalives: alive, because they are answered.
    tokio::time::sleep(Duration::from_secs(2)).await;
    soon(process.stdin.write_all("x")).await.unwrap();
    assert_eq!(soon(process.stdout.recv()).await.unwrap().unwrap(), "x");
    sshd.signal_sessions(Signal::SIGSTOP);
    let error = soon(process.stdout.recv()).await.unwrap_err();
    assert!(error.to_string().contains("no answer to keepalives"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_host_is_noticed_while_sending() {
    // By the write that is stuck, or by keepalives when the kernel took all of the window.
    let sshd = Sshd::start();
    let mut target = sshd.target();
    target.options.write_stall = Duration::from_secs(1);
    target.options.keepalive = Duration::from_millis(500);
    let connection = Connection::connect(&target).await.unwrap();
    let mut process = connection.spawn("cat >/dev/null").await.unwrap();
    soon(process.stdin.write_all(piece(0))).await.unwrap();
    sshd.signal_sessions(Signal::SIGSTOP);
    let error = loop {
        if let Err(error) = soon(process.stdin.write_all(piece(1))).await {
            break error;
        }
    };
    assert!(matches!(error, Error::ConnectionLost { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_command_sees_the_end() {
    // Pitfall: dropping a session does not end the remote process.
    let sshd = Sshd::start();
    let connection = Connection::connect(&sshd.target()).await.unwrap();
    let mark = sshd.path().join("ended");
    let command = format!("cat >/dev/null; echo yes > {}", mark.display());
    let appears = || async {
        while !mark.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        std::fs::remove_file(&mark).unwrap();
    };
    // Standard input dropped alone.
    let (stdin, _stdout, exit) = connection.spawn(&command).await.unwrap().split();
    drop(stdin);
    soon(appears()).await;
    assert_eq!(soon(exit.wait()).await.unwrap(), ExitStatus::Code(0));
    // Everything dropped.
    let process = connection.spawn(&command).await.unwrap();
    drop(process);
    soon(appears()).await;
    // The connection dropped with everything.
    let process = soon(async {
        loop {
            match connection.spawn(&command).await {
                Ok(process) => break process,
                Err(Error::Busy { .. }) => tokio::time::sleep(Duration::from_millis(10)).await,
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await;
    drop(connection);
    drop(process);
    soon(appears()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_holds_the_command_back() {
    let sshd = Sshd::start();
    let connection = Connection::connect(&sshd.target()).await.unwrap();
    let mut process = connection.spawn("cat /dev/zero").await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    // What had been sent is bounded: drain until the pipe is dry would never end, so
    // count what is there without waiting.
    let mut waiting = 0;
    while let Ok(Ok(Some(data))) = tokio::time::timeout(Duration::ZERO, process.stdout.recv()).await
    {
        waiting += data.len();
        if waiting > 64 << 20 {
            break;
        }
    }
    assert!(waiting > 0);
    drop(process);
    connection.close().await;
}
