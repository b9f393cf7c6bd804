//! `hvbak report`: what is stored, how old it is, and what the last run did.

use std::time::Duration;

use hvbak_tests::{Lab, Run, small};
use nix::sys::signal::Signal;
use serde_json::Value;

#[track_caller]
fn vm(run: &Run, name: &str) -> Value {
    let found = run.of("vm").into_iter().find(|vm| vm["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {run}"))
}

#[test]
fn each_vm_has_its_newest_point_and_the_run_its_failures() {
    let lab = Lab::with(&small());
    lab.json(&["report", "--max-age", "1h"]).exits(0);
    lab.hvbak(&["backup", "--vm", "web1"]).exits(0);
    lab.write("web1", "web1_Disk1", 3 << 20, 70_000, 0x54);
    lab.hvbak(&["backup", "--vm", "web1"]).exits(0);
    // `db1` cannot be read, `web1` can.
    let bottom = lab.volumes("db1", "db1_Disk1").pop().unwrap();
    let meta = format!("{}.meta", bottom.display());
    let text = std::fs::read_to_string(&meta).unwrap();
    std::fs::write(&meta, text.replace("LEGALITY=LEGAL", "LEGALITY=ILLEGAL")).unwrap();
    lab.hvbak(&["backup", "--vm", "web1", "--vm", "db1", "--level", "full"]).exits(3);

    let run = lab.json(&["report"]).exits(0);
    let web = vm(&run, "web1");
    let newest = &web["newest"];
    assert_eq!((&web["points"], &web["too_old"]), (&3.into(), &false.into()), "{run}");
    assert_eq!((&newest["level"], &newest["chain"]), (&"full".into(), &1.into()), "{run}");
    assert_eq!(newest["virtual_size"], (64 << 20) + (48 << 20), "{run}");
    assert_eq!(web["last_run"]["outcome"], "done", "{run}");
    assert!(newest["age_seconds"].as_i64().unwrap() < 600, "{run}");
    let db = vm(&run, "db1");
    assert_eq!((&db["points"], &db["newest"]), (&0.into(), &Value::Null), "{run}");
    assert_eq!(db["last_run"]["outcome"], "failed", "{run}");
    let last = &run.of("run")[0];
    let of = |name: &str| last["vms"].as_array().unwrap().iter().find(|v| v["name"] == name);
    assert_eq!(of("web1").unwrap()["point"], newest["point"], "{run}");
    assert_eq!(of("web1").unwrap()["reason"], "asked for", "{run}");
    assert_eq!(of("db1").unwrap()["reason"], db["last_run"]["reason"], "{run}");

    // `db1` has no point at all; later `web1` is late as well.
    let run = lab.json(&["report", "--max-age", "1h"]).exits(3);
    assert_eq!(run.result()["too_old"], serde_json::json!(["db1"]), "{run}");
    lab.json(&["report", "--max-age", "1h", "--vm", "web1"]).exits(0);
    std::thread::sleep(Duration::from_millis(1100));
    let run = lab.json(&["report", "--max-age", "1s"]).exits(3);
    assert_eq!(run.result()["too_old"], serde_json::json!(["db1", "web1"]), "{run}");
    // For people.
    let shown = lab.hvbak(&["report"]).exits(0);
    for word in ["web1", "AGE", "last backup", "1 done, 1 failed", "failed   db1: "] {
        assert!(shown.stdout.contains(word), "{word}: {shown}");
    }
    lab.hvbak(&["report", "--vm", "nobody"]).exits(2);

    // What was looked at is known, as it was found.
    assert_eq!(web["last_verify"], Value::Null);
    lab.hvbak(&["verify", "web1"]).exits(0);
    let verified = vm(&lab.json(&["report"]).exits(0), "web1")["last_verify"].clone();
    assert_eq!((&verified["outcome"], &verified["point"]), (&"done".into(), &newest["point"]));

    // A point that cannot be read is no good news, and a delta's chain is counted.
    std::fs::write(&meta, &text).unwrap();
    lab.hvbak(&["backup", "--all"]).exits(0);
    let run = lab.json(&["report", "--max-age", "1h"]).exits(0);
    assert_eq!(vm(&run, "web1")["newest"]["chain"], 2, "{run}");
    assert!(run.of("run")[0]["vms"].as_array().unwrap().len() >= 3, "{run}");
    let newest = vm(&run, "db1")["newest"]["point"].as_str().unwrap().to_owned();
    let id = vm(&run, "db1")["vm"].as_str().unwrap().to_owned();
    let file = lab.path("repository/vms").join(id).join(newest).join("manifest.json");
    std::fs::write(file, "{").unwrap();
    let run = lab.json(&["report"]).exits(15);
    assert_eq!(vm(&run, "db1")["damaged"], 1, "{run}");
    lab.hvbak(&["verify", "--all"]).exits(15);
    let run = lab.json(&["report"]).exits(15);
    assert_eq!(vm(&run, "db1")["last_verify"]["outcome"], "failed", "{run}");
    assert_eq!(vm(&run, "web1")["last_verify"]["outcome"], "done", "{run}");
    lab.hvbak(&["report"]).exits(15).says("cannot be read");
}

#[test]
fn a_run_that_was_stopped_is_recorded_and_one_that_died_is_told() {
    let lab = Lab::standard();
    lab.configure(|text| format!("{text}\n[transfer]\nrate_limit_mib = 1\n"));
    lab.fill_web1();
    let reading = |lab: &Lab| !lab.points().is_empty();
    let run = lab.start_until(&["backup", "--vm", "web1"], reading);
    run.signal(Signal::SIGINT);
    run.wait().exits(130);
    let run = lab.json(&["report"]).exits(0);
    assert_eq!(vm(&run, "web1")["last_run"]["outcome"], "stopped", "{run}");
    let run = lab.start_until(&["backup", "--vm", "web1"], reading);
    run.signal(Signal::SIGKILL);
    run.wait();
    let run = lab.json(&["report"]).exits(0);
    assert_eq!(run.result()["dead_jobs"].as_array().unwrap().len(), 1, "{run}");
    lab.hvbak(&["report"]).exits(0).says("hvbak cleanup");
    lab.hvbak(&["cleanup"]).exits(0);
    assert!(lab.json(&["report"]).exits(0).result()["dead_jobs"].as_array().unwrap().is_empty());
    lab.assert_clean();
}
