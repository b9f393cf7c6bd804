//! What is taken out of a text, what stays in it, and how long that may take.

use std::{fs, path::Path};

use proptest::prelude::*;

use super::*;

fn whole(text: &[u8], pieces: usize) -> Vec<u8> {
    let mut scrubber = Scrubber::default();
    let mut kept: Vec<u8> = text.chunks(pieces).flat_map(|p| scrubber.take(p)).collect();
    kept.extend(scrubber.end());
    kept
}

#[test]
fn secrets_go_and_the_rest_of_the_line_stays() {
    for (line, kept) in [
        ("ENGINE_DB_PASSWORD=\"a b c\"\n", "ENGINE_DB_PASSWORD=\"[removed]\"\n"),
        ("x PGPASSWORD=abc psql -w\n", "x PGPASSWORD=[removed] psql -w\n"),
        ("{\"adminPassword\": \"abc\", \"a\": 1}", "{\"adminPassword\": \"[removed]\", \"a\": 1}"),
        ("client_secret = abc\r\n", "client_secret = [removed]\r\n"),
        ("postgresql://engine:a:b@db/engine?x", "postgresql://engine:[removed]@db/engine?x"),
        ("localhost:5432:engine:engine:a:b c\n", "localhost:5432:engine:engine:[removed]\n"),
        ("*:*:*:engine:abc", "*:*:*:engine:[removed]"),
        ("password=", "password="),
        (
            "alter role engine with PASSWORD 'it''s x';\n",
            "alter role engine with PASSWORD '[removed]';\n",
        ),
        ("ENCRYPTED PASSWORD E'a\\'b' LOGIN", "ENCRYPTED PASSWORD E'[removed]' LOGIN"),
        ("create role x password\t'abc", "create role x password\t'[removed]"),
        ("password:abc def", "password:[removed] def"),
        ("x --db-password abc --db-host h\n", "x --db-password [removed] --db-host h\n"),
        ("x --password 'a b' y", "x --password '[removed]' y"),
        ("x --password=abc y", "x --password=[removed] y"),
        ("x --dwh-db-password=\"a b\"c d", "x --dwh-db-password=\"[removed] d"),
        ("PGPASSWORD='a'\\''b c' psql", "PGPASSWORD='[removed]' psql"),
        ("{\"password\":\"a\\\"b, c\",\"x\":2}", "{\"password\":\"[removed]\",\"x\":2}"),
        ("{\"password\" : \"abc\"}", "{\"password\" : \"[removed]\"}"),
        ("{\"secrets\": [\"a\", \"b\"], \"c\": 1}", "{\"secrets\": [removed]], \"c\": 1}"),
        ("{'password': 'abc'}", "{'password': '[removed]'}"),
        ("<a>/x</a><password>a b</password>", "<a>/x</a><password>[removed]</password>"),
        ("dwh_password=a;engine_password=b;", "dwh_password=[removed];engine_password=[removed];"),
        ("OVESETUP_DB/password=str:abc", "OVESETUP_DB/password=[removed]"),
        (
            r#"x "{\"password\":\"ge\\\"heim\", \"a\": 1}""#,
            r#"x "{\"password\":\"[removed]\", \"a\": 1}""#,
        ),
        (r#"{\"password\": \"a\\\\\",\"b\":1}"#, r#"{\"password\": \"[removed]\",\"b\":1}"#),
        ("postgresql://engine:a/b@db/x y", "postgresql://engine:[removed]@db/x y"),
        ("x secret-key=abc y", "x secret-key=[removed] y"),
        ("x --client-secret-id abc y", "x --client-secret-id [removed] y"),
        ("DB/password=str:'a b' c", "DB/password=str:'[removed]' c"),
        ("{u'password': u'a, b', u'c': 1}", "{u'password': u'[removed]', u'c': 1}"),
        ("<password type=\"x\">geheim x</password>", "<password type=\"x\">[removed]</password>"),
        ("host=db password = abc user=x", "host=db password = [removed] user=x"),
        (
            "a\n-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\nb\n",
            "a\n[a private key was removed]\nb\n",
        ),
        (
            "-----BEGIN PRIVATE KEY-----\nAAAA\n2026-11-21 02:36:56 77: OUTPUT: - Files\n",
            "[a private key was removed]\n2026-11-21 02:36:56 77: OUTPUT: - Files\n",
        ),
        (
            "2026-11-21 02:14:54 123: OUTPUT: -----BEGIN RSA PRIVATE KEY-----\nAAAA\nBBBB\n-----END RSA PRIVATE KEY-----\nb\n",
            "2026-11-21 02:14:54 123: OUTPUT: [a private key was removed]\nb\n",
        ),
        // The same line by line, as a logger writes what has several.
        (
            "2026-11-21 02:14:54 123: k: -----BEGIN RSA PRIVATE KEY-----\n2026-11-21 02:14:54 123: k: Proc-Type: 4,ENCRYPTED\n2026-11-21 02:14:54 123: k:\n2026-11-21 02:14:55 9123: k: AAA=\n2026-11-21 02:14:54 123: k: -----END RSA PRIVATE KEY-----\n2026-11-21 02:14:54 123: k: AAA=\n",
            "2026-11-21 02:14:54 123: k: [a private key was removed]\n2026-11-21 02:14:54 123: k: AAA=\n",
        ),
        (
            "password=abc -----BEGIN PRIVATE KEY-----\\nAAAA\\n-----END PRIVATE KEY-----\nb\n",
            "password=[removed] [a private key was removed]\nb\n",
        ),
        (
            "-----BEGIN PRIVATE KEY-----\nAAAA\nBB-----BEGIN PRIVATE KEY-----\nCCCC\n-----END PRIVATE KEY-----\nb",
            "[a private key was removed]\n[a private key was removed]\nb",
        ),
    ] {
        for pieces in [1, 7, 4096] {
            assert_eq!(
                String::from_utf8_lossy(&whole(line.as_bytes(), pieces)),
                kept,
                "{line} in {pieces}"
            );
        }
    }
}

#[test]
fn what_a_person_needs_to_see_stays() {
    for line in [
        "psql: FATAL:  password authentication failed for user \"engine\"\n",
        "FATAL: --db-passfile or --db-password is missing\n",
        "2026-11-21 02:36:56 77: OUTPUT: - Engine database 'engine'\n",
        "cp /var/lib/pgsql/.pgpass: Permission denied\n",
        "tar: /etc/x/secret: Permission denied\n",
        "use --db-password or --db-passfile; --password --user, --password\n",
        "the password of 'engine' is wrong\n",
        "<password/> </password> a > b\n",
        "<password type=\"x\"/> a\n",
        "https://engine.example.test:8443/a@b http://[::1]:80/a@b\n",
        "a:1:b c:d:e\n",
        "https://engine.example.test/ovirt-engine\n",
        "\u{fffd}\0binary\n",
    ] {
        assert_eq!(whole(line.as_bytes(), 5), line.as_bytes(), "{line}");
    }
}

#[test]
fn a_line_without_an_end_takes_no_more_memory_than_its_limit() {
    for bytes in [b'x', b' ', b'"'] {
        let mut scrubber = Scrubber::default();
        scrubber.take(b"password=\"");
        for _ in 0..100 {
            scrubber.take(&[bytes; 50_000]);
            assert!(scrubber.line.len() < LINE_MAX + 50_000);
        }
    }
}

#[test]
fn a_secret_where_a_long_line_is_cut_is_found_all_the_same() {
    for before in LINE_MAX - 40..LINE_MAX + 10 {
        let line = format!("{} --db-password=geheimnis end\n", "x".repeat(before));
        for pieces in [1000, LINE_MAX, 1 << 20] {
            let kept = String::from_utf8(whole(line.as_bytes(), pieces)).unwrap();
            assert!(kept.ends_with(" --db-password=[removed] end\n"), "{before} {pieces}");
            assert_eq!(kept.len(), line.len());
        }
    }
    // One that is longer than a piece.
    let line = format!("a password={} b\nc\n", "geheim".repeat(LINE_MAX));
    assert_eq!(whole(line.as_bytes(), 10_000), b"a password=[removed] b\nc\n");
}

#[test]
fn hostile_lines_take_time_in_proportion_to_their_length() {
    // 16 MiB of each: with work that grows by the square of a line these take minutes.
    let begun = std::time::Instant::now();
    for hostile in [
        "password",
        "/password",
        "password=\"",
        "password='",
        "password:",
        "password ",
        "--password ",
        "<password>",
        "secret\\",
        "password=[",
        "a://b:c@",
        "://x",
        "-----BEGIN ",
        "password\" : ",
        "PASSWORD E'",
        "1:2:",
        "://x:y/",
        "<password x=",
        "password\\\":\\\"",
        "secret-",
    ] {
        let text = hostile.repeat((16 << 20) / hostile.len());
        assert!(whole(text.as_bytes(), 32 << 10).len() < 3 * text.len());
    }
    assert!(begun.elapsed().as_secs() < 100, "{:?}", begun.elapsed());
}

#[test]
fn recorded_logs_and_outputs_of_the_real_program_are_kept_as_they_are() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/engine-backup");
    for name in ["4.5.7-all.log", "4.2.8.9-all.log"] {
        let log = fs::read(dir.join(name)).unwrap();
        assert!(whole(&log, 8192) == log, "{name}");
    }
    let runs = fs::read_to_string(dir.join("transcripts.jsonl")).unwrap();
    for run in runs.lines() {
        let run: serde_json::Value = serde_json::from_str(run).unwrap();
        for key in ["stdout", "stderr"] {
            let text = run[key].as_str().unwrap_or_default().as_bytes();
            assert!(whole(text, 100) == text, "{} {key}", run["name"]);
        }
    }
}

/// Lines of recorded logs that the program began itself.
fn own_lines() -> Vec<String> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/engine-backup");
    let logs = ["4.5.7-all.log", "4.2.8.9-all.log"].map(|name| fs::read(dir.join(name)).unwrap());
    let text = logs.map(|log| String::from_utf8_lossy(&log).into_owned()).concat();
    text.lines().filter(|line| key::is_own(line.as_bytes())).map(|l| format!("{l}\n")).collect()
}

proptest! {
    #[test]
    fn a_stamped_key_goes_and_every_line_around_it_stays(
        at in 0..1_000_usize,
        otopi in any::<bool>(),
        words in "[a-z]{0,8}( key:)?",
        body in prop::collection::vec("[A-Za-z0-9+/]{64}", 1..6),
        last in "[A-Za-z0-9+/]{1,63}={0,2}",
        ends in any::<bool>(),
        pieces in 1..200_usize,
    ) {
        let lines = own_lines();
        prop_assert!(lines.len() > 20);
        let (before, after) = lines.split_at(at % lines.len());
        let stamp = |n: usize| if otopi {
            format!("2026-11-21 02:14:{:02},{n:03}+0100 DEBUG otopi.plugins.x plugin.execute:{n} ", n % 60)
        } else {
            format!("2026-11-21 02:14:{:02} {n}: OUTPUT: ", n % 60)
        };
        let begin = format!("{}{words} ", stamp(98));
        let mut text = before.concat() + &begin + "-----BEGIN PRIVATE KEY-----\n";
        for (n, line) in body.iter().chain([&last]).enumerate() {
            text += &format!("{}{line}\n", stamp(n + 99));
        }
        if ends {
            text += &(stamp(200) + "-----END PRIVATE KEY-----\n");
        }
        text += &after.concat();
        let kept = String::from_utf8(whole(text.as_bytes(), pieces)).unwrap();
        let expected = before.concat() + &begin + "[a private key was removed]\n" + &after.concat();
        prop_assert_eq!(kept, expected);
    }
}
