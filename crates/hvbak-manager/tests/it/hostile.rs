//! Archives made to hurt whoever reads them.

use proptest::prelude::*;
use tar::EntryType;

use crate::support::{Piece, bytes, damage, gzip, pack, pieces, resum, with};

fn piece(name: &str, kind: EntryType, data: &[u8]) -> Piece {
    Piece { name: name.into(), kind, data: data.to_vec() }
}

#[test]
fn rule_09_a_command_in_config_is_found_and_never_run() {
    let whole = bytes("4.5.7-all.backup");
    for line in [
        "touch /tmp/pwned",
        "DB_DUMP_FORMAT=custom; touch /tmp/pwned",
        "DB_DUMP_FORMAT=$(touch /tmp/pwned)",
        "DB_DUMP_FORMAT=`id`",
        "DB_DUMP_FORMAT=custom touch /tmp/pwned",
        "PATH=evil",
        "LD_PRELOAD=evil",
        " DB_DUMP_FORMAT=custom",
        "DB_DUMP_FORMAT='a'",
        "DB_DUMP_FORMAT=custom\r",
        "# comment",
    ] {
        let config = format!("DB_DUMP_COMPRESSOR=\n{line}\n");
        let text = damage(&with(&whole, "config", Some(config.as_bytes())));
        assert!(text.contains("a root shell would run this file"), "{line}: {text}");
    }
}

#[test]
fn names_that_lead_out_are_found_outside_and_inside() {
    let whole = bytes("4.5.7-all.backup");
    for name in ["/etc/passwd", "../../etc/passwd", "./db/../../x"] {
        let mut bad = pieces(&whole);
        bad.push(piece(name, EntryType::Regular, b"x"));
        let text = damage(&gzip(&pack(&resum(bad))));
        assert!(text.contains("leads out of the archive"), "{name}: {text}");
        let nested = pack(&[piece(name, EntryType::Regular, b"x")]);
        assert!(damage(&with(&whole, "files", Some(&nested))).contains("leads out"), "{name}");
    }
    let through = pack(&[
        piece("etc/x", EntryType::Symlink, b"/"),
        piece("etc/x/passwd", EntryType::Regular, b"x"),
    ]);
    assert!(damage(&with(&whole, "files", Some(&through))).contains("through a link"));
}

#[test]
fn devices_and_links_are_found() {
    let whole = bytes("4.5.7-all.backup");
    for kind in [EntryType::Char, EntryType::Block, EntryType::Fifo] {
        let nested = pack(&[piece("dev/x", kind, b"")]);
        assert!(damage(&with(&whole, "files", Some(&nested))).contains("is a device"));
        let mut outer = pieces(&whole);
        outer.push(piece("db/x", kind, b""));
        assert!(damage(&gzip(&pack(&resum(outer)))).contains("neither a file nor a directory"));
    }
    let mut outer = pieces(&whole);
    outer.push(piece("db/x", EntryType::Symlink, b"/etc/shadow"));
    assert!(damage(&gzip(&pack(&resum(outer)))).contains("neither a file nor a directory"));
}

#[test]
fn a_member_may_not_come_twice() {
    let mut twice = pieces(&bytes("4.5.7-all.backup"));
    twice.insert(0, piece("config", EntryType::Regular, b"DB_DUMP_FORMAT=custom\n"));
    assert!(damage(&gzip(&pack(&twice))).contains("twice"));
}

#[test]
fn claimed_sizes_take_no_memory() {
    // Long names and sizes up to 2^63 in the header, with nothing behind them.
    for kind in [EntryType::GNULongName, EntryType::XHeader, EntryType::Regular] {
        for size in [1_u64 << 30, 1 << 49, 1 << 62] {
            let mut header = tar::Header::new_gnu();
            header.set_path("x").unwrap();
            header.set_entry_type(kind);
            header.set_size(size);
            header.set_cksum();
            let mut archive = header.as_bytes().to_vec();
            archive.resize(4096, 0);
            damage(&gzip(&archive));
            damage(&archive);
        }
    }
    // A name of a gigabyte that compresses to a megabyte.
    let mut header = tar::Header::new_gnu();
    header.set_path("x").unwrap();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(1 << 30);
    header.set_cksum();
    let bomb = [header.as_bytes().to_vec(), vec![b'a'; 64 << 20]].concat();
    assert!(damage(&gzip(&bomb)).contains("name claims"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_change_of_any_member_ends_in_a_panic(
        which in 0_usize..11, at in any::<prop::sample::Index>(), byte: u8, cut: bool,
    ) {
        let whole = bytes("4.5.7-all.backup");
        let mut pieces = pieces(&whole);
        let which = which % pieces.len();
        let data = &mut pieces[which].data;
        let at = at.index(data.len());
        data[at] = byte;
        if cut {
            data.truncate(at);
        }
        let _ = crate::support::report(&gzip(&pack(&resum(pieces.clone()))));
        let _ = crate::support::report(&gzip(&pack(&pieces)));
    }

    #[test]
    fn no_noise_ends_in_a_panic(noise in prop::collection::vec(any::<u8>(), 0..3000), head in 0_usize..5) {
        let start: &[u8] = [&b""[..], b"\x1f\x8b\x08\0", b"BZh9", b"\xfd7zXZ\0", b"PGDMP\x01\x0e\0"][head];
        let noise = [start, &noise].concat();
        let _ = crate::support::report(&noise);
        let whole = bytes("4.5.7-db.backup");
        let _ = crate::support::report(&with(&whole, "db/engine_backup.db", Some(&noise)));
        let _ = crate::support::report(&with(&whole, "files", Some(&noise)));
    }
}
