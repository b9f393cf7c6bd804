//! What we offer in the handshake, and why in this order.
//!
//! The defaults of the SSH library fit neither FIPS nor STIG hosts (no NIST ECDH, no
//! AES-128-GCM) and are slow (ChaCha20 first, rekey each GiB). The order of ciphers was
//! measured: AES-128-GCM ahead of AES-256-GCM, CTR about half of it.

use std::{borrow::Cow, time::Duration};

use russh::{
    Limits, Preferred,
    cipher::{self, AES_128_CTR, AES_128_GCM, AES_192_CTR, AES_256_CTR, AES_256_GCM},
    client, compression,
    kex::{self, EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT, EXTENSION_SUPPORT_AS_CLIENT},
    mac,
};

use crate::{hostkey::Family, target::SshOptions};

/// What a connection agreed on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Negotiated {
    /// Key exchange.
    pub kex: String,
    /// Host key algorithm.
    pub host_key: String,
    /// Cipher; without a MAC of its own when it is GCM or ChaCha20-Poly1305.
    pub cipher: String,
    /// MAC, meaningful with CTR and CBC ciphers only.
    pub mac: String,
}

/// Which ciphers an attempt offers. ChaCha20 gets an attempt of its own, because its
/// rekey limit must be lower and the limit is fixed before the cipher is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CipherSet {
    Aes,
    ChaCha,
}

/// Bytes in one direction before new keys. A rekey costs 20 ms to 1 s; AES has a block of
/// 128 bits, so RFC 4344 allows 2^32 blocks = 64 GiB: half of it.
const REKEY_AES: usize = 32 << 30;
/// OpenSSH's own limit for ChaCha20.
const REKEY_CHACHA: usize = 1 << 30;

/// Messages the library queues per channel (each up to 32 KiB) before it stops reading
/// the network: the back-pressure of a slow consumer.
const CHANNEL_QUEUE: usize = 64;

pub(crate) fn config(
    options: &SshOptions,
    families: &[Family],
    ciphers: CipherSet,
) -> client::Config {
    let mut kex = vec![
        kex::MLKEM768X25519_SHA256,
        kex::CURVE25519,
        kex::CURVE25519_PRE_RFC_8731,
        kex::ECDH_SHA2_NISTP256,
        kex::ECDH_SHA2_NISTP384,
        kex::ECDH_SHA2_NISTP521,
        kex::DH_G16_SHA512,
        kex::DH_G14_SHA256,
        kex::DH_G18_SHA512,
        kex::DH_GEX_SHA256,
    ];
    let mut mac =
        vec![mac::HMAC_SHA256_ETM, mac::HMAC_SHA512_ETM, mac::HMAC_SHA256, mac::HMAC_SHA512];
    let mut cipher = match ciphers {
        CipherSet::Aes => vec![AES_128_GCM, AES_256_GCM, AES_128_CTR, AES_192_CTR, AES_256_CTR],
        CipherSet::ChaCha => vec![cipher::CHACHA20_POLY1305],
    };
    if options.legacy {
        kex.extend([kex::DH_G14_SHA1, kex::DH_GEX_SHA1]);
        mac.extend([mac::HMAC_SHA1_ETM, mac::HMAC_SHA1]);
        if ciphers == CipherSet::Aes {
            cipher.extend([cipher::AES_256_CBC, cipher::AES_128_CBC]);
        }
    }
    // Without these two names in the list, ext-info (RSA with SHA-2) and strict kex
    // (the Terrapin fix) silently vanish.
    kex.extend([EXTENSION_SUPPORT_AS_CLIENT, EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT]);
    let key = families.iter().flat_map(|f| f.algorithms(options.legacy)).collect::<Vec<_>>();
    let rekey = if ciphers == CipherSet::Aes { REKEY_AES } else { REKEY_CHACHA };
    client::Config {
        // The host's log should say who came; the library's version is nobody's business.
        client_id: russh::SshId::Standard(Cow::Borrowed(concat!(
            "SSH-2.0-hvbak_",
            env!("CARGO_PKG_VERSION")
        ))),
        limits: Limits {
            rekey_write_limit: rekey,
            rekey_read_limit: rekey,
            rekey_time_limit: Duration::from_secs(3600),
        },
        window_size: options.window,
        maximum_packet_size: 32 * 1024,
        channel_buffer_size: CHANNEL_QUEUE,
        preferred: Preferred {
            kex: kex.into(),
            key: key.into(),
            host_key_certificates: Cow::Borrowed(&[]),
            cipher: cipher.into(),
            mac: mac.into(),
            // Clusters are compressed at the source; compressing again costs a core.
            compression: Cow::Borrowed(&[compression::NONE]),
        },
        inactivity_timeout: None,
        keepalive_interval: Some(options.keepalive),
        keepalive_max: options.keepalive_max,
        // 8192-bit groups, the library's wish, cost 0.85 s per key exchange.
        gex: client::GexParams::new(2048, 3072, 8192).unwrap_or_default(),
        nodelay: true,
        ..client::Config::default()
    }
}
