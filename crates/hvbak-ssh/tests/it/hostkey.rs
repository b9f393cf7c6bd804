//! Whom we trust.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use hvbak_ssh::{Connection, Error, HostTrust, Pin, PinStore};

use crate::support::{Setup, Sshd, keygen};

fn three_keys() -> Sshd {
    Sshd::with(Setup { host_keys: vec!["rsa", "ecdsa", "ed25519"], ..Setup::default() })
}

#[tokio::test(flavor = "multi_thread")]
async fn any_of_three_host_keys_by_line_and_by_fingerprint() {
    let sshd = three_keys();
    for kind in ["rsa", "ecdsa", "ed25519"] {
        for record in [
            sshd.host_key(kind),
            sshd.host_key(kind).replace(" test", " another comment"),
            sshd.fingerprint(kind, "sha256"),
            format!("{}=", sshd.fingerprint(kind, "sha256")),
            sshd.fingerprint(kind, "md5"),
            sshd.fingerprint(kind, "md5").trim_start_matches("MD5:").to_uppercase(),
        ] {
            let mut target = sshd.target();
            target.trust = HostTrust::pinned([record.as_str()]).unwrap();
            let connection = Connection::connect(&target).await.unwrap();
            let key = connection.host_key().unwrap();
            assert!(record.parse::<Pin>().unwrap().matches(&key), "{record}");
            assert_eq!(key.sha256, sshd.fingerprint(kind, "sha256"));
            assert_eq!(key.md5, sshd.fingerprint(kind, "md5"));
            assert!(sshd.host_key(kind).starts_with(&key.line));
            connection.close().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_key_is_a_mismatch_that_shows_both() {
    let sshd = three_keys();
    let other = sshd.path().join("other");
    keygen(&other, "ecdsa", "");
    let line = std::fs::read_to_string(other.with_extension("pub")).unwrap();
    let stranger: Pin = line.parse().unwrap();
    let Pin::Key(stranger) = stranger else { panic!() };

    // By fingerprint every key of the host is looked at and shown.
    for record in [stranger.sha256.clone(), stranger.md5.clone()] {
        let mut target = sshd.target();
        target.trust = HostTrust::from_engine(None, Some(&record)).unwrap();
        let error = Connection::connect(&target).await.unwrap_err();
        let Error::HostKeyMismatch { expected, offered, .. } = &error else { panic!("{error}") };
        assert_eq!(*expected, std::slice::from_ref(&record));
        let shown = offered.join("\n");
        let hash = if record.starts_with("MD5") { "md5" } else { "sha256" };
        for kind in ["rsa", "ecdsa", "ed25519"] {
            assert!(shown.contains(&sshd.fingerprint(kind, hash)), "{shown}");
        }
        assert!(error.is_host_key() && !error.retryable() && error.hint().is_some());
    }

    // By key only the key of that kind is asked for.
    let mut target = sshd.target();
    target.trust = HostTrust::from_engine(Some(&line), Some("ignored")).unwrap();
    let error = Connection::connect(&target).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&stranger.sha256), "{text}");
    assert!(text.contains(&sshd.fingerprint("ecdsa", "sha256")), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_the_recorded_kind_is_a_mismatch_not_unknown() {
    // Pitfall: known_hosts code calls this "unknown" and then learns the new key.
    let sshd = Sshd::start();
    let other = sshd.path().join("other");
    keygen(&other, "rsa", "");
    let line = std::fs::read_to_string(other.with_extension("pub")).unwrap();
    let mut target = sshd.target();
    target.trust = HostTrust::pinned([line.as_str()]).unwrap();
    match Connection::connect(&target).await.unwrap_err() {
        Error::HostKeyMismatch { offered, .. } => {
            assert!(offered[0].contains(&sshd.fingerprint("ed25519", "sha256")));
        }
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_host_needs_consent() {
    let sshd = Sshd::start();
    let mut target = sshd.target();
    target.trust = HostTrust::from_engine(None, Some("  ")).unwrap();
    match Connection::connect(&target).await.unwrap_err() {
        Error::HostKeyUnknown { offered, .. } => {
            assert!(offered[0].ends_with(&sshd.fingerprint("ed25519", "sha256")));
        }
        other => panic!("{other}"),
    }
    // Nothing that proves who we are was shown to it.
    assert!(!sshd.log().contains("Accepted"), "{}", sshd.log());

    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    target.trust = HostTrust::Consent(Arc::new(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        false
    }));
    assert!(matches!(
        Connection::connect(&target).await.unwrap_err(),
        Error::HostKeyUnknown { .. }
    ));
    assert_eq!(asked.load(Ordering::SeqCst), 1);

    // Consent, record, and from then on pinned.
    target.trust = HostTrust::accept_new();
    let connection = Connection::connect(&target).await.unwrap();
    let file = sshd.path().join("pins");
    let mut pins = PinStore::open(&file).unwrap();
    assert!(pins.trust("127.0.0.1", sshd.port).is_none());
    pins.add("127.0.0.1", sshd.port, &connection.host_key().unwrap()).unwrap();
    connection.close().await;
    let pins = PinStore::open(&file).unwrap();
    target.trust = pins.trust("127.0.0.1", sshd.port).unwrap();
    Connection::connect(&target).await.unwrap().close().await;
    assert!(pins.trust("127.0.0.1", sshd.port + 1).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_shows_every_key_and_proves_nothing() {
    let sshd = three_keys();
    let keys = Connection::scan(&sshd.target()).await.unwrap();
    let mut found: Vec<_> = keys.iter().map(|key| key.sha256.clone()).collect();
    let mut real: Vec<_> =
        ["rsa", "ecdsa", "ed25519"].iter().map(|k| sshd.fingerprint(k, "sha256")).collect();
    found.sort();
    real.sort();
    assert_eq!(found, real);
    assert!(!sshd.log().contains("Accepted"));
    // What a message shows can be given back as the record.
    let mut target = sshd.target();
    target.trust = HostTrust::pinned([keys[0].describe().as_str()]).unwrap();
    Connection::connect(&target).await.unwrap().close().await;
}

#[test]
fn the_pin_file_fails_safe() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    keygen(&a, "ed25519", "");
    keygen(&b, "ed25519", "");
    let line = |p: &std::path::Path| std::fs::read_to_string(p.with_extension("pub")).unwrap();
    let file = dir.path().join("pins");
    // Garbage, comments, tabs and two keys of one algorithm in one file.
    std::fs::write(
        &file,
        format!(
            "# comment\n\u{1}garbage\n[h]:22\t{}[h]:22 {}[broken]:22 ssh-ed25519 AAAA\n",
            line(&a),
            line(&b)
        ),
    )
    .unwrap();
    let mut pins = PinStore::open(&file).unwrap();
    assert_eq!(pins.keys("h", 22).len(), 2);
    assert!(matches!(pins.trust("broken", 22), Some(HostTrust::Pinned(list)) if list.is_empty()));
    assert!(pins.trust("other", 22).is_none());
    assert!(pins.add("a b", 22, &pins.keys("h", 22)[0].clone()).is_err());
    assert_eq!(pins.remove("h", 22).unwrap(), 2);
    let left = std::fs::read_to_string(&file).unwrap();
    assert!(left.contains("# comment") && left.contains("garbage"), "{left}");
    // A file that cannot be read is no empty record.
    assert!(matches!(PinStore::open(dir.path()), Err(Error::PinFile { .. })));
}

#[test]
fn records_that_are_nothing_are_refused() {
    for bad in ["", "x", "SHA256:abc", "ssh-ed25519 AAAA", "aa:bb", "SHA512:xyz"] {
        assert!(bad.parse::<Pin>().is_err(), "{bad}");
        if !bad.is_empty() {
            assert!(HostTrust::from_engine(None, Some(bad)).is_err(), "{bad}");
        }
    }
}
