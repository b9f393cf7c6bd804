//! What is sealed here opens with stock `age`, and the other way round; what was cut off,
//! changed or meant for others does not open.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Command, Stdio},
};

use age::secrecy::ExposeSecret;

use super::*;

/// A pair of keys as age writes them: private, public.
fn pair() -> (String, String) {
    let key = x25519::Identity::generate();
    (key.to_string().expose_secret().to_owned(), key.to_public().to_string())
}

fn identities(text: &str) -> Identities {
    Identities::parse(&Secret::new(text), "test").unwrap()
}

fn seal(plain: &[u8], to: &[&str], path: &Path) {
    let recipients = Recipients::parse(to).unwrap();
    let mut out = recipients.seal(File::create(path).unwrap(), path).unwrap();
    out.write_all(plain).unwrap();
    out.finish().unwrap();
}

fn open(path: &Path, identities: &Identities) -> Result<Vec<u8>> {
    let mut plain = Vec::new();
    open_sealed(path, identities)?.read_to_end(&mut plain).unwrap();
    Ok(plain)
}

/// The stock program, or nothing and a loud word; CI makes that a failure.
fn stock(args: &[&str]) -> Option<Command> {
    let there = Command::new("age").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !there {
        let why = "age is not installed (Debian: apt-get install age)";
        assert!(std::env::var_os("HVBAK_NO_SKIP").is_none(), "{why}");
        eprintln!("SKIP: {why}");
        if let Some(log) = std::env::var_os("HVBAK_SKIP_LOG") {
            let file = fs::OpenOptions::new().append(true).create(true).open(log);
            let _ = file.and_then(|mut f| writeln!(f, "sealed archives: {why}"));
        }
        return None;
    }
    let mut command = Command::new("age");
    command.args(args);
    Some(command)
}

/// An SSH key without a passphrase: its file, and its public line with a comment.
fn ssh_key(dir: &Path, kind: &str) -> (PathBuf, String) {
    let path = dir.join(format!("id_{kind}"));
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", kind, "-N", "", "-C", "somebody@somewhere", "-f"])
        .arg(&path)
        .status()
        .unwrap();
    assert!(made.success());
    let public = fs::read_to_string(path.with_extension("pub")).unwrap();
    (path, public.trim().to_owned())
}

/// Sizes around age's chunks of 64 KiB.
const SIZES: [usize; 6] = [0, 1, 65_535, 65_536, 65_537, 200_000];

#[test]
fn stock_age_opens_what_is_sealed_here_and_the_other_way_round() {
    let dir = tempfile::tempdir().unwrap();
    let (private, public) = pair();
    let key = dir.path().join("key");
    fs::write(&key, format!("# created: by a test\n{private}\n")).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let mut keys = vec![(key, public)];
    keys.extend(["ed25519", "rsa"].map(|kind| ssh_key(dir.path(), kind)));
    for (n, (key, public)) in keys.iter().enumerate() {
        let mine = identities(&fs::read_to_string(key).unwrap());
        for size in if n == 0 { &SIZES[..] } else { &SIZES[4..5] } {
            let plain: Vec<u8> = (0..*size).map(|i| (i * 31 % 251) as u8).collect();
            let sealed = dir.path().join("sealed");
            // Each recipient alone can open it.
            seal(&plain, &[&pair().1, public], &sealed);
            assert!(is_sealed(&sealed).unwrap());
            assert_eq!(open(&sealed, &mine).unwrap(), plain);
            let Some(mut age) = stock(&["-d", "-i"]) else { return };
            let out = age.arg(key).arg(&sealed).output().unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            assert_eq!(out.stdout, plain);
            let (open_file, theirs) = (dir.path().join("plain"), dir.path().join("theirs"));
            fs::write(&open_file, &plain).unwrap();
            let _ = fs::remove_file(&theirs);
            let mut age = stock(&["-r", public, "-o"]).unwrap();
            assert!(age.arg(&theirs).arg(&open_file).status().unwrap().success());
            assert_eq!(open(&theirs, &mine).unwrap(), plain);
            let sum = sum_sealed(&theirs, &mine).unwrap();
            assert_eq!((sum.size, sum.sha256), (*size as u64, crate::sums::of_bytes(&plain)));
        }
    }
}

#[test]
fn a_cut_or_changed_file_is_damage_wherever_it_is_cut_or_changed() {
    let dir = tempfile::tempdir().unwrap();
    let (private, public) = pair();
    let (path, mine) = (dir.path().join("sealed"), identities(&private));
    seal(&vec![7; 150_000], &[&public], &path);
    let whole = fs::read(&path).unwrap();
    let check = |bytes: &[u8], what: &str| {
        fs::write(&path, bytes).unwrap();
        let error = sum_sealed(&path, &mine).unwrap_err();
        let expected = error.is_damage() || matches!(error, Error::WrongIdentity { .. });
        assert!(expected, "{what}: {error:?}");
        error.is_damage()
    };
    let header = whole.windows(5).position(|w| w == HEADER_END).unwrap();
    for cut in (0..header + 80).step_by(13).chain([
        header + 60,
        header + 65_616,
        header + 65_700,
        whole.len() - 1,
        whole.len() - 17,
    ]) {
        assert!(check(&whole[..cut], &format!("cut at {cut}")), "cut at {cut}");
    }
    for at in (0..whole.len()).step_by(whole.len() / 97).chain([whole.len() - 1]) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        let damaged = check(&bytes, &format!("changed at {at}"));
        assert!(damaged || at < header, "changed at {at}");
    }
    assert!(check(&[&whole[..], b"x"].concat(), "more behind it"));
    assert!(check(b"", "nothing"));
    assert!(check(b"PGDMP", "no file of age"));
    // A header without an end is not looked for in all of a large file.
    assert!(check(&[MAGIC, &vec![b'x'; 1 << 20]].concat(), "no end of the header"));
    fs::write(&path, &whole).unwrap();
    assert_eq!(sum_sealed(&path, &mine).unwrap().size, 150_000);
}

#[test]
fn a_foreign_identity_is_told_from_damage() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sealed");
    seal(b"x", &[&pair().1], &path);
    let error = sum_sealed(&path, &identities(&pair().0)).unwrap_err();
    assert!(matches!(error, Error::WrongIdentity { .. }) && !error.is_damage(), "{error:?}");
}

#[test]
fn a_recipient_that_is_none_is_told_and_a_private_key_is_never_repeated() {
    let (private, public) = pair();
    let ecdsa = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBA==";
    let cut = &public[..public.len() - 1];
    for (text, expected) in [
        (cut, "age1"),
        ("age1tag1qwe0kddddd", "X25519"),
        ("ssh-ed25519 AAAA", "neither"),
        (ecdsa, "ssh-ed25519"),
        ("", "neither"),
        ("hello\u{1b}[31m", "neither"),
    ] {
        let error = Recipients::parse(&[text]).unwrap_err().to_string();
        assert!(error.contains(expected) && !error.contains('\u{1b}'), "{text}: {error}");
    }
    for text in [private.clone(), private.to_lowercase(), format!(" {private}")] {
        let error = Recipients::parse(&[text]).unwrap_err().to_string();
        assert!(error.contains("only public keys"), "{error}");
        assert!(!error.to_lowercase().contains(&private[16..30].to_lowercase()), "{error}");
    }
}

#[test]
fn recipients_are_read_from_a_file_and_an_empty_one_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let (path, (_, one), (_, two)) = (dir.path().join("list"), pair(), pair());
    fs::write(&path, format!("# the safe's\n{one}\n\n  {two}  \r\n{one}\n")).unwrap();
    let read = Recipients::read(&path).unwrap();
    assert_eq!(read.names(), [one.clone(), two.clone()]);
    assert_eq!(Recipients::parse(&[&two]).unwrap().and(read).names(), [two, one]);
    fs::write(&path, "# nobody\n").unwrap();
    assert!(Recipients::read(&path).unwrap_err().to_string().contains("names none"));
    assert!(matches!(Recipients::read(&dir.path().join("no")), Err(Error::Read { .. })));
    // Without the comment, which names a person or a machine.
    let (_, ssh) = ssh_key(dir.path(), "ed25519");
    let names = Recipients::parse(&[&ssh]).unwrap();
    assert!(ssh.starts_with(&names.names()[0]) && !names.names()[0].contains("somebody"));
}

#[test]
fn an_identity_that_cannot_be_used_is_told_without_a_word_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let (private, public) = pair();
    let locked = dir.path().join("locked");
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "passphrase", "-f"])
        .arg(&locked)
        .status()
        .unwrap();
    assert!(made.success());
    let locked = fs::read_to_string(locked).unwrap();
    let cut = &private[..private.len() - 1];
    for (text, expected) in [
        ("", "no private key"),
        ("# only a comment\n", "no private key"),
        (public.as_str(), "line 1"),
        (cut, "line 1"),
        (locked.as_str(), "passphrase"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n", "cannot be read"),
        ("-----BEGIN AGE ENCRYPTED FILE-----\nAAAA\n", "age -d"),
    ] {
        let error = Identities::parse(&Secret::new(text), "/root/key").unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(shown.contains(expected) && shown.contains("/root/key"), "{shown}");
        assert!(!shown.contains(&private[16..30]), "{shown}");
    }
    assert!(!format!("{:?}", identities(&private)).contains(&private[16..30]));
}

#[test]
fn the_text_form_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("armored");
    fs::write(&path, "-----BEGIN AGE ENCRYPTED FILE-----\nYWdl\n").unwrap();
    assert!(is_sealed(&path).unwrap_err().to_string().contains("text form"));
    fs::write(&path, "tar").unwrap();
    assert!(!is_sealed(&path).unwrap());
}

#[test]
fn a_key_is_tried_before_anything_is_sealed() {
    let dir = tempfile::tempdir().unwrap();
    let ((mine, to_me), (foreign, _)) = (pair(), pair());
    let (file, line) = ssh_key(dir.path(), "ed25519");
    let recipients = Recipients::parse(&[to_me.as_str(), line.as_str()]).unwrap();
    let opens = |text: &str| recipients.are_opened_by(&identities(text)).unwrap();
    assert!(opens(&mine) && opens(&fs::read_to_string(file).unwrap()));
    assert!(!opens(&foreign));
    assert!(opens(&format!("{foreign}\n{mine}\n")), "one of several is enough");
}
