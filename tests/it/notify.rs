//! Notices: who is told how a command has ended, and that it changes nothing.

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    sync::mpsc,
};

use hvbak_tests::Lab;

fn script(lab: &Lab, name: &str, text: &str) -> String {
    let path = lab.path(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    path.display().to_string()
}

/// Answers one request and hands it over.
fn web_hook(status: &'static str) -> (u16, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut got, mut part) = (Vec::new(), [0; 4096]);
        loop {
            let n = stream.read(&mut part).unwrap();
            got.extend_from_slice(&part[..n]);
            let text = String::from_utf8_lossy(&got).to_lowercase();
            let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length = length.and_then(|text| text.trim().parse::<usize>().ok());
            let head = text.find("\r\n\r\n").map(|at| at + 4);
            if n == 0 || head.zip(length).is_some_and(|(head, length)| got.len() >= head + length) {
                break;
            }
        }
        write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            .unwrap();
        sender.send(String::from_utf8(got).unwrap()).unwrap();
    });
    (port, receiver)
}

#[test]
fn a_failure_is_told_by_mail_web_hook_and_event_and_a_success_only_when_asked() {
    let lab = Lab::standard();
    let letter = lab.path("letter");
    let mail = script(
        &lab,
        "sendmail",
        &format!("#!/bin/sh\n{{ echo \"$@\"; cat; }} > {}\n", letter.display()),
    );
    let (port, hooked) = web_hook("204 No Content");
    let address = lab.path("hook");
    fs::write(&address, format!("http://127.0.0.1:{port}/t0ken\n")).unwrap();
    fs::set_permissions(&address, fs::Permissions::from_mode(0o600)).unwrap();
    lab.configure(|text| {
        format!(
            "{text}\n[policy.nightly]\nvms = [\"db1\", \"gone\"]\n[notify]\nmail_to = [\"ops@example.com\"]\nsendmail = \"{mail}\"\nweb_hook_file = \"{}\"\nengine_event = true\n",
            address.display()
        )
    });
    // Nobody is told of what somebody types, or of what went well.
    lab.hvbak(&["backup", "--policy", "nightly"]).exits(3);
    lab.hvbak(&["verify", "--all", "--notify"]).exits(0);
    assert!(!letter.exists());
    lab.hvbak(&["--notify", "backup", "--policy", "nightly"])
        .exits(3)
        .never_says("nobody was told");
    let text = fs::read_to_string(&letter).unwrap();
    assert!(text.contains("ops@example.com") && text.contains("partly done"), "{text}");
    assert!(text.contains("not there: there is no vm `gone`"), "{text}");
    let hook = hooked.recv().unwrap();
    assert!(hook.starts_with("POST /t0ken") && hook.contains("\"exit\":3"), "{hook}");
    let events = lab.api("GET", "/events", "");
    assert!(events.contains("hvbak backup --policy nightly on"), "{events}");
    // Ways that fail are told, and the command ends as it would have.
    fs::remove_file(&letter).unwrap();
    let broken = script(&lab, "sendmail", "#!/bin/sh\nexit 75\n");
    assert_eq!(broken, mail);
    lab.configure(|text| text.replace("[notify]", "[notify]\nwhen = \"always\""));
    lab.hvbak(&["--notify", "verify", "--all"]).exits(0).says("75").never_says("t0ken");
}

#[test]
fn a_run_that_systemd_stops_is_told_to_the_engine_too() {
    let lab = Lab::standard();
    lab.configure(|text| {
        format!("{text}\n[transfer]\nrate_limit_mib = 1\n[notify]\nengine_event = true\n")
    });
    lab.fill_web1();
    let reading = |lab: &Lab| !lab.points().is_empty();
    let run = lab.start_until(&["--notify", "backup", "--vm", "web1"], reading);
    run.signal(nix::sys::signal::Signal::SIGTERM);
    run.wait().exits(143).never_says("nobody was told");
    let events = lab.api("GET", "/events", "");
    assert!(events.contains("hvbak backup --vm web1 on"), "{events}");
}
