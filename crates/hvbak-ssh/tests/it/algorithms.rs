//! Algorithm sets that hardened and old hosts accept.

use hvbak_ssh::{Connection, Error, Identity, enroll};

use crate::support::{Setup, Sshd};

/// An sshd with these settings; our key is ECDSA P-256 as enrolment makes it.
async fn check(name: &str, host_keys: Vec<&'static str>, config: &str, cipher: &str, kex: &str) {
    let sshd = Sshd::with(Setup { host_keys, config: config.into(), ..Setup::default() });
    let key = sshd.path().join("enrolled");
    let line = enroll::generate_key(enroll::KeyKind::EcdsaP256, &key, None, "hvbak").unwrap();
    sshd.authorize(&line);
    let mut target = sshd.target();
    target.identity = vec![Identity::key_file(key)];
    let connection = Connection::connect(&target).await.unwrap_or_else(|error| {
        panic!("{name}: {error}\n{}", sshd.log());
    });
    let agreed = connection.negotiated();
    assert_eq!(agreed.cipher, cipher, "{name}");
    assert_eq!(agreed.kex, kex, "{name}");
    assert_ne!(agreed.host_key, "ssh-rsa", "{name}");
    let out = connection.exec_with_stdin("sha256sum", vec![1; 1 << 20]).await.unwrap();
    assert!(out.status.success(), "{name}");
    connection.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn default_fips_stig_and_el7() {
    const GCM128: &str = "aes128-gcm@openssh.com";
    check("OpenSSH default", vec!["ed25519"], "", GCM128, "curve25519-sha256").await;
    check(
        "FIPS policy",
        vec!["ecdsa", "rsa"],
        "Ciphers aes256-gcm@openssh.com,aes256-ctr,aes256-cbc,aes128-gcm@openssh.com,aes128-ctr,aes128-cbc\n\
         MACs hmac-sha2-256-etm@openssh.com,hmac-sha1-etm@openssh.com,hmac-sha2-512-etm@openssh.com,hmac-sha2-256,hmac-sha1,hmac-sha2-512\n\
         KexAlgorithms ecdh-sha2-nistp256,ecdh-sha2-nistp384,ecdh-sha2-nistp521,diffie-hellman-group-exchange-sha256,diffie-hellman-group16-sha512,diffie-hellman-group18-sha512\n\
         HostKeyAlgorithms ecdsa-sha2-nistp256,ecdsa-sha2-nistp384,ecdsa-sha2-nistp521,rsa-sha2-256,rsa-sha2-512\n\
         PubkeyAcceptedAlgorithms ecdsa-sha2-nistp256,ecdsa-sha2-nistp384,ecdsa-sha2-nistp521,rsa-sha2-256,rsa-sha2-512",
        GCM128,
        "ecdh-sha2-nistp256",
    )
    .await;
    check(
        "STIG RHEL 8",
        vec!["rsa"],
        "Ciphers aes256-ctr,aes192-ctr,aes128-ctr\nMACs hmac-sha2-512,hmac-sha2-256\n\
         KexAlgorithms ecdh-sha2-nistp256,ecdh-sha2-nistp384,ecdh-sha2-nistp521,diffie-hellman-group-exchange-sha256,diffie-hellman-group14-sha256,diffie-hellman-group16-sha512,diffie-hellman-group18-sha512\n\
         HostKeyAlgorithms rsa-sha2-512,rsa-sha2-256\nPubkeyAcceptedAlgorithms ecdsa-sha2-nistp256,rsa-sha2-512\n\
         MaxAuthTries 4\nClientAliveInterval 600\nClientAliveCountMax 0\nCompression no\nAllowTcpForwarding no",
        "aes128-ctr",
        "ecdh-sha2-nistp256",
    )
    .await;
    check(
        "EL7",
        vec!["rsa"],
        "Ciphers aes128-ctr,aes192-ctr,aes256-ctr\nMACs hmac-sha2-256,hmac-sha2-512,hmac-sha1\n\
         KexAlgorithms diffie-hellman-group-exchange-sha256,diffie-hellman-group14-sha256,diffie-hellman-group14-sha1\n\
         HostKeyAlgorithms rsa-sha2-256,ssh-rsa",
        "aes128-ctr",
        "diffie-hellman-group14-sha256",
    )
    .await;
    check(
        "RHEL 7 STIG, group exchange alone",
        vec!["ecdsa"],
        "Ciphers aes256-ctr\nMACs hmac-sha2-512-etm@openssh.com\n\
         KexAlgorithms diffie-hellman-group-exchange-sha256",
        "aes256-ctr",
        "diffie-hellman-group-exchange-sha256",
    )
    .await;
    check(
        "ChaCha20 alone",
        vec!["ed25519"],
        "Ciphers chacha20-poly1305@openssh.com\nKexAlgorithms curve25519-sha256@libssh.org",
        "chacha20-poly1305@openssh.com",
        "curve25519-sha256@libssh.org",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sha1_only_with_the_legacy_flag() {
    let sshd = Sshd::with(Setup {
        host_keys: vec!["rsa"],
        config: "Ciphers aes128-cbc\nMACs hmac-sha1\nKexAlgorithms diffie-hellman-group14-sha1\n\
                 HostKeyAlgorithms ssh-rsa\nPubkeyAcceptedAlgorithms +ssh-rsa\nRequiredRSASize 1024"
            .into(),
        ..Setup::default()
    });
    let mut target = sshd.target();
    let error = Connection::connect(&target).await.unwrap_err();
    assert!(matches!(error, Error::NoCommonAlgorithm { .. }), "{error:?}");
    assert!(error.to_string().contains("diffie-hellman-group14-sha1"), "{error}");
    target.options.legacy = true;
    let connection = Connection::connect(&target).await.unwrap();
    assert_eq!(connection.exec("echo old").await.unwrap().text(), "old");
    assert_eq!(connection.negotiated().cipher, "aes128-cbc");
    connection.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rekey_in_the_middle_changes_nothing() {
    // The host asks for new keys every 8 MiB here.
    let sshd = Sshd::with(Setup { config: "RekeyLimit 8M".into(), ..Setup::default() });
    let connection = Connection::connect(&sshd.target()).await.unwrap();
    let (mut stdin, mut stdout, exit) = connection.spawn("cat").await.unwrap().split();
    let writer = tokio::spawn(async move {
        for n in 0..50_u8 {
            stdin.write_all(vec![n; 1 << 20]).await.unwrap();
        }
        stdin.finish().await.unwrap();
    });
    let mut at = 0_usize;
    while let Some(data) = stdout.recv().await.unwrap() {
        for (i, byte) in data.iter().enumerate() {
            assert_eq!(usize::from(*byte), (at + i) >> 20);
        }
        at += data.len();
    }
    assert_eq!(at, 50 << 20);
    writer.await.unwrap();
    assert!(exit.wait().await.unwrap().success());
    connection.close().await;
}
