//! Many VMs in one run.

use hvbak_tests::Lab;
use serde_json::{Value, json};

fn many(count: usize) -> Value {
    let disk = |n: usize| json!({ "alias": format!("vm{n}_Disk1"), "size": (8 + n) << 20, "format": "cow" });
    let vms: Vec<Value> = (0..count)
        .map(|n| json!({ "name": format!("vm{n}"), "running": n % 2 == 0, "disks": [disk(n)] }))
        .collect();
    json!({ "vms": vms })
}

fn fleet(count: usize) -> Lab {
    let lab = Lab::bare(&many(count), &["--hosts", "2", "--domains", "nfs,gluster"]);
    lab.enrol();
    for n in 0..count {
        lab.write(&format!("vm{n}"), &format!("vm{n}_Disk1"), 1 << 20, 1 << 20, n as u8 + 1);
    }
    lab
}

/// How many VMs were at work at the same time, at the most.
fn peak(events: &[Value]) -> usize {
    let (mut now, mut peak) = (0usize, 0);
    for event in events {
        match event["type"].as_str() {
            Some("vm-started") => now += 1,
            Some("vm-done" | "vm-failed") => now -= 1,
            _ => {}
        }
        peak = peak.max(now);
    }
    peak
}

#[test]
fn vms_are_backed_up_side_by_side_within_the_limits() {
    let lab = fleet(6);
    lab.configure(|text| format!("{text}\n[limits]\nvms = 3\nvms_per_host = 2\n"));
    let run = lab.json(&["backup", "--all"]).exits(0);
    assert_eq!(run.result()["done"].as_array().unwrap().len(), 6, "{run}");
    let found = peak(&run.lines());
    assert!((2..=3).contains(&found), "{found} at a time\n{run}");
    let again = lab.json(&["backup", "--all"]).exits(0);
    let levels: Vec<_> = again.of("disk-started").iter().map(|e| e["level"].clone()).collect();
    assert_eq!(levels, vec![json!("incremental"); 6]);
    lab.hvbak(&["verify", "--all"]).exits(0);
    lab.assert_clean();
}

#[test]
fn a_vm_that_fails_does_not_stop_the_others() {
    let lab = fleet(3);
    let bottom = lab.volumes("vm1", "vm1_Disk1").pop().unwrap();
    let meta = format!("{}.meta", bottom.display());
    let text = std::fs::read_to_string(&meta).unwrap();
    std::fs::write(&meta, text.replace("LEGALITY=LEGAL", "LEGALITY=ILLEGAL")).unwrap();
    let run = lab.json(&["backup", "--all"]).exits(3);
    let result = run.result();
    assert_eq!(result["done"].as_array().unwrap().len(), 2, "{run}");
    assert_eq!(result["failed"][0]["name"], "vm1", "{run}");
    lab.assert_clean();
}

#[test]
fn a_run_that_was_stopped_goes_on_with_the_rest() {
    let lab = fleet(4);
    lab.configure(|text| format!("{text}\n[limits]\nvms = 1\n"));
    let run = lab.start_until(&["backup", "--all"], |lab| {
        // Published points have no dot before their name.
        lab.points().iter().any(|p| !p.starts_with('.'))
    });
    run.signal(nix::sys::signal::Signal::SIGINT);
    run.wait().exits(130);
    lab.assert_clean();
    let before = lab.points().len();
    assert!((1..4).contains(&before), "{before} points");
    let rest = lab.json(&["backup", "--all", "--max-age", "1h"]).exits(0);
    assert_eq!(rest.result()["done"].as_array().unwrap().len(), 4 - before, "{rest}");
    let none = lab.json(&["backup", "--all", "--max-age", "1h"]).exits(0);
    assert_eq!(none.result()["done"].as_array().unwrap().len(), 0, "{none}");
    lab.assert_clean();
}
