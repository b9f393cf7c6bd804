//! `hvbak report`: what is stored, how old it is, and what the last run did.

use std::time::Duration;

use hvbak_tests::{Lab, Run, skip, small};
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

#[test]
fn a_page_and_a_file_for_a_monitor_say_what_the_table_says() {
    let lab = Lab::standard();
    lab.configure(|text| {
        format!(
            "{text}\n[report]\nmax_age = \"26h\"\nmax_verified_age = \"360h\"\nmax_manager_age = \"26h\"\n\
             [policy.nightly]\nvms = [\"web1\"]\n"
        )
    });
    lab.hvbak(&["backup", "--policy", "nightly"]).exits(0).says("in no policy").says("db1");
    let (page, metrics) = (lab.path("out.html"), lab.path("out.prom"));
    let typed = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let args = ["report", "--html", &typed(&page), "--prometheus", &typed(&metrics)];
    // Nothing was verified yet.
    let run = lab.json(&args).exits(3);
    let result = run.result();
    assert_eq!(result["verified_too_old"], serde_json::json!(["web1"]), "{run}");
    assert_eq!(result["too_old"], serde_json::json!([]), "{run}");
    assert!(result["unassigned"].as_array().unwrap().contains(&"db1".into()), "{run}");
    let about = |run: &Run, name: &str| run.of("problem").into_iter().find(|p| p["about"] == name);
    assert_eq!(about(&run, "web1").unwrap()["remedy"], "`hvbak verify web1`", "{run}");
    assert_eq!(about(&run, "db1").unwrap()["severity"], "warning", "{run}");
    lab.hvbak(&["verify", "web1"]).exits(0);

    // Names are what the engine's users typed; a record is the easiest place to put one.
    let record = lab.path("repository/runs");
    let record = std::fs::read_dir(record).unwrap().map(|e| e.unwrap().path());
    let record = record.filter(|p| p.to_str().unwrap().contains("-backup-")).max().unwrap();
    let mut run: Value = serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
    let hostile = "a\"b\\</td><script>alert(1)</script>\n`x`";
    let bad = serde_json::json!({ "id": "6dc24d8e-3c5c-4f43-9a1a-6cbb2e9f3f10", "name": hostile, "outcome": "failed", "reason": "<b>no route</b>", "remedy": "look at the switch" });
    run["vms"].as_array_mut().unwrap().push(bad);
    std::fs::write(&record, run.to_string()).unwrap();
    let run = lab.json(&args).exits(3);
    assert_eq!(vm(&run, "web1")["verified"]["point"], vm(&run, "web1")["newest"]["point"], "{run}");
    assert_eq!(run.result()["too_old"], serde_json::json!([hostile]), "{run}");
    let html = std::fs::read_to_string(&page).unwrap();
    assert!(!html.contains("<script>alert") && !html.contains("<b>no"), "{html}");
    for word in ["web1", "look at the switch", "&lt;script&gt;", "in no policy"] {
        assert!(html.contains(word), "{word}: {html}");
    }
    // Prometheus's own reader takes it, and finds nothing to complain about.
    let text = std::fs::File::open(&metrics).unwrap();
    match std::process::Command::new("promtool").args(["check", "metrics"]).stdin(text).output() {
        Err(cause) => skip(&format!("promtool is not installed: {cause}")),
        Ok(told) => {
            let said =
                String::from_utf8_lossy(&told.stderr) + String::from_utf8_lossy(&told.stdout);
            assert!(told.status.success() && said.is_empty(), "{said}");
        }
    }
    let text = std::fs::read_to_string(&metrics).unwrap();
    let web = vm(&run, "web1")["vm"].as_str().unwrap().to_owned();
    let value = |name: &str, labels: &str| {
        let line = text.lines().find(|l| l.starts_with(&format!("{name}{labels} ")));
        let line = line.unwrap_or_else(|| panic!("no {name}{labels}: {text}"));
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    let labels = format!("{{id=\"{web}\",vm=\"web1\"}}");
    assert!(value("hvbak_vm_points", &labels) == 1.0 && value("hvbak_vm_too_old", &labels) == 0.0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let made = value("hvbak_vm_newest_point_timestamp_seconds", &labels);
    assert!((0.0..600.0).contains(&(now.as_secs_f64() - made)), "{made}");
    assert!(value("hvbak_unassigned_vms", "") >= 1.0);
    assert!(!text.contains("hvbak_vm_last_drill_success{"), "nothing was rehearsed: {text}");
    for path in [&page, &metrics] {
        let mode = std::os::unix::fs::MetadataExt::mode(&path.metadata().unwrap());
        assert_eq!(mode & 0o777, 0o644, "{path:?}");
    }
    // Where nothing can be written it is told, and nothing is half there.
    let nowhere = typed(&lab.path("nowhere/out.prom"));
    lab.hvbak(&["report", "--prometheus", &nowhere]).exits(1).says("nowhere/out.prom");
    // Alone on the standard output, for a pipe.
    let piped = lab.hvbak(&["report", "--html", "-"]).exits(3);
    assert!(piped.stdout.starts_with("<!DOCTYPE html>"), "{piped}");
    lab.json(&["report", "--html", "-"]).exits(2);
    let shown = lab.hvbak(&["report"]).exits(3);
    for line in ["FAILED ", "remedy: look at the switch", "warning db1: is in no policy"] {
        assert!(shown.stdout.contains(line), "{line}: {shown}");
    }
}

#[test]
fn damage_that_was_found_stays_told_until_it_is_gone_and_proves_nothing_above_it() {
    let lab = Lab::standard();
    lab.configure(|text| format!("{text}\n[report]\nmax_manager_age = \"26h\"\n"));
    lab.fill_web1();
    lab.hvbak(&["backup", "--vm", "web1"]).exits(0);
    let full = lab.point("web1");
    lab.write("web1", "web1_data", 3 << 20, 70_000, 0x33);
    lab.hvbak(&["backup", "--vm", "web1"]).exits(0);
    // A manager's archive is demanded, and there never was one.
    let run = lab.json(&["report"]).exits(3);
    assert_eq!(run.result()["no_manager"], true, "{run}");
    lab.configure(|text| text.replace("max_manager_age", "#max_manager_age"));
    lab.hvbak(&["verify", "--all"]).exits(0);
    let run = lab.json(&["report"]).exits(0);
    assert_eq!(vm(&run, "web1")["verified"]["point"], vm(&run, "web1")["newest"]["point"], "{run}");
    // Something in the middle of the full's larger image changes.
    let images = std::fs::read_dir(&full).unwrap().map(|entry| entry.unwrap().path());
    let image = images
        .filter(|path| path.extension().is_some_and(|e| e == "qcow2"))
        .max_by_key(|path| path.metadata().unwrap().len())
        .unwrap();
    let good = std::fs::read(&image).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle..middle + 64].iter_mut().for_each(|byte| *byte ^= 0x5a);
    std::fs::write(&image, &bad).unwrap();
    lab.hvbak(&["verify", "--all"]).exits(15);
    let id = full.file_name().unwrap().to_str().unwrap().to_owned();
    let run = lab.json(&["report"]).exits(15);
    assert_eq!(vm(&run, "web1")["found_damaged"], serde_json::json!([id]), "{run}");
    assert_eq!(vm(&run, "web1")["verified"], Value::Null, "what stands on it: {run}");
    // A later look at another point alone changes nothing of that.
    for day in 1..=7 {
        let share = format!("{day}/7");
        let run = lab.hvbak(&["verify", "--all", "--share", &share]);
        assert!(run.code == 0 || run.code == 15, "{run}");
    }
    lab.hvbak(&["report"]).exits(15).says(&id);
    std::fs::write(&image, &good).unwrap();
    lab.hvbak(&["verify", "web1"]).exits(0);
    let run = lab.json(&["report"]).exits(0);
    assert_eq!(vm(&run, "web1")["found_damaged"], serde_json::json!([]), "{run}");
    assert_eq!(vm(&run, "web1")["verified"]["point"], vm(&run, "web1")["newest"]["point"], "{run}");
}

#[test]
fn a_vm_that_every_night_leaves_out_is_seen_though_it_never_had_a_point() {
    let mut seed = small();
    let vms = seed["vms"].as_array_mut().unwrap();
    let idle = |name: &str| serde_json::json!({ "name": name, "disks": [{ "alias": format!("{name}_Disk1"), "size": 4 << 20 }] });
    let (mut asleep, mut pooled) = (idle("asleep"), idle("fresh"));
    asleep["status"] = "suspended".into();
    pooled["stateless"] = true.into();
    vms.extend([asleep, pooled]);
    let lab = Lab::with(&seed);
    lab.hvbak(&["backup", "--all"]).says("asleep").exits(3);
    let run = lab.json(&["report"]);
    let seen = vm(&run, "asleep");
    assert_eq!(
        (&seen["points"], &seen["last_run"]["outcome"]),
        (&0.into(), &"skipped".into()),
        "{run}"
    );
    // Of one that can never be backed up nothing is expected.
    assert!(!run.of("vm").iter().any(|vm| vm["name"] == "fresh"), "{run}");
    lab.hvbak(&["report"]).says("the last backup left it out").says("suspended");
    lab.hvbak(&["report", "--max-age", "1h"]).exits(3);
}
