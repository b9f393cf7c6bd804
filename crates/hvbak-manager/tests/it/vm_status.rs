//! `--vm-status --json` as the real formatter printed it.

use hvbak_manager::hosted_engine::{Verdict, VmStatus, VmStatusError};

use crate::support::fixture;

fn status(name: &str) -> VmStatus {
    let text = std::fs::read_to_string(fixture("vm-status").join(name)).unwrap();
    VmStatus::parse(&text, "").unwrap()
}

#[test]
fn recorded_answers_are_understood() {
    let host = "host1.example.test".to_owned();
    let normal = status("normal.json");
    assert_eq!((normal.hosts.len(), normal.global_maintenance), (2, false));
    assert_eq!(normal.verdict(), Verdict::Healthy { host });
    assert!(status("global.json").global_maintenance);
    for name in ["booting.json", "liveliness.json"] {
        assert!(matches!(status(name).verdict(), Verdict::NotAnswering { .. }), "{name}");
    }
}

#[test]
fn a_host_without_live_data_is_not_heard() {
    let mut stale = status("stale.json");
    assert!(matches!(stale.verdict(), Verdict::Healthy { .. }));
    assert!(!stale.hosts[1].live_data);
    // The JSON of a dead host goes on saying that the VM is up there.
    stale.hosts[0].live_data = false;
    assert_eq!(stale.verdict(), Verdict::Unknown);
}

#[test]
fn a_broker_that_is_down_is_told_from_nonsense() {
    let stderr =
        std::fs::read_to_string(fixture("vm-status").join("broker-down.stderr.txt")).unwrap();
    assert_eq!(VmStatus::parse("", &stderr), Err(VmStatusError::BrokerDown));
    let traceback =
        "Traceback (most recent call last):\njson.decoder.JSONDecodeError: Expecting value\n";
    assert_eq!(VmStatus::parse("", traceback), Err(VmStatusError::BrokerDown));
    let never = VmStatus::parse("You must run deploy first\n", "");
    assert_eq!(never, Err(VmStatusError::NotDeployed));
    assert!(matches!(VmStatus::parse("<html>", ""), Err(VmStatusError::Unreadable { .. })));
    assert!(matches!(VmStatus::parse("{\"1\": 5}", ""), Err(VmStatusError::Unreadable { .. })));
}
