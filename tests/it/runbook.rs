//! The runbook of a lab: what its pages say is true, and their commands work.

use hvbak_tests::{Lab, run_tool};

fn page(lab: &Lab, name: &str) -> String {
    std::fs::read_to_string(lab.path("pages").join(name)).unwrap()
}

#[test]
fn pages_hold_the_sites_facts_and_commands_that_work() {
    let lab = Lab::standard();
    lab.fill_web1();
    let reference = lab.save("web1", "web1_data");
    lab.hvbak(&["backup", "--vm", "web1"]).exits(0);
    lab.hvbak(&["verify", "web1@latest"]).exits(0);
    lab.configure(|text| text + "\n[runbook]\ncontacts = [\"Storage: 0043 1 2345\"]\n");
    let out = lab.path("pages");
    let run = lab.json(&["runbook", "--output", out.to_str().unwrap()]).exits(0);
    assert!(run.result()["vms_without_point"].as_u64().unwrap() >= 1, "{run}");
    assert_eq!(run.result()["manager_points"], 0);
    let overview = page(&lab, "overview.md");
    let point = lab.point("web1").file_name().unwrap().to_string_lossy().into_owned();
    for fact in [
        "Storage: 0043 1 2345",
        "| web1 |",
        &point,
        "| hv1 |",
        "nfs1",
        "56:6f:3a:01:00:00 – ",
        "| whole on ",
    ] {
        assert!(overview.contains(fact), "{fact}: {overview}");
    }
    // Somebody without hvbak follows the page.
    let lost = page(&lab, "backup-host-lost.md");
    let mut compared = false;
    for line in lost.lines().filter(|line| line.starts_with("qemu-img ")) {
        let target = lab.scratch("by-hand.raw");
        let line = match line.split_once("/restore/") {
            Some((start, rest)) => {
                compared |= rest.starts_with("web1_data");
                format!("{start}{}", target.display())
            }
            None => line.to_owned(),
        };
        run_tool("sh", &["-c", &line]);
        if compared && target.exists() {
            let files = [target.to_str().unwrap(), reference.to_str().unwrap()];
            run_tool("qemu-img", &["compare", "-f", "raw", "-F", "raw", files[0], files[1]]);
            break;
        }
    }
    assert!(compared, "{lost}");
    // And somebody with hvbak.
    let one = page(&lab, "vm-lost.md");
    let line = one.lines().find(|line| line.starts_with("hvbak restore")).unwrap();
    let words: Vec<_> = line.split(' ').skip(1).collect();
    lab.hvbak(&words).exits(0);
    assert!(lab.vm_names().contains(&"web1-try".to_owned()));
    let password = std::fs::read_to_string(lab.path("engine.password")).unwrap();
    let html = page(&lab, "runbook.html");
    assert!(!html.contains(password.trim()));
    lab.assert_clean_but(&["web1-try"]);
}
