//! `manager-paths`: hvbak's own list on the manager, and nothing else there.

use std::fs;

use hvbak_run::{ManagerPaths, ManagerPathsOptions, RunError, manager_paths};

use crate::stage::{Stage, text};

const FILE: &str = "etc/ovirt-engine-backup/engine-backup-config.d/50-hvbak-paths.sh";

fn add(paths: &[&str]) -> ManagerPathsOptions {
    ManagerPathsOptions {
        add: paths.iter().map(ToString::to_string).collect(),
        ..ManagerPathsOptions::default()
    }
}

fn remove(paths: &[&str]) -> ManagerPathsOptions {
    ManagerPathsOptions {
        remove: paths.iter().map(ToString::to_string).collect(),
        ..ManagerPathsOptions::default()
    }
}

impl Stage {
    async fn paths(&self, options: &ManagerPathsOptions) -> Result<ManagerPaths, RunError> {
        manager_paths(&self.context(), options).await
    }
}

fn names(done: &ManagerPaths) -> Vec<&str> {
    done.paths.iter().map(|seen| seen.path.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn extra_files_are_added_listed_and_removed() {
    let stage = Stage::new("4.5.7");
    let etc = stage.sshd.root().join("etc");
    fs::create_dir_all(etc.join("my dir")).unwrap();
    fs::write(etc.join("hosts"), "x").unwrap();
    let dry = ManagerPathsOptions { dry_run: true, ..add(&["/etc/hosts"]) };
    let done = stage.paths(&dry).await.unwrap();
    assert!(names(&done) == ["/etc/hosts"] && done.text.unwrap().contains("'/etc/hosts'"));
    assert_eq!(stage.on_manager(FILE), None);
    for n in 0..2 {
        let wish = add(&["/etc/my dir/", "/etc/hosts", "/etc/none", "/etc/ovirt-engine/x"]);
        let done = stage.paths(&wish).await.unwrap();
        assert_eq!(done.added.len(), if n == 0 { 4 } else { 0 });
        let notes = done.notes.join("\n");
        assert!(notes.contains("/etc/none does not exist"), "{notes}");
        assert!(notes.contains("/etc/ovirt-engine/x is backed up anyway"), "{notes}");
    }
    let written = stage.on_manager(FILE).unwrap();
    let done = stage.paths(&ManagerPathsOptions::default()).await.unwrap();
    assert_eq!(names(&done), ["/etc/hosts", "/etc/my dir", "/etc/none", "/etc/ovirt-engine/x"]);
    let kinds: Vec<_> = done.paths.iter().map(|seen| seen.kind.as_str()).collect();
    assert_eq!(kinds, ["file", "directory", "missing", "missing"]);
    assert_eq!(stage.on_manager(FILE).unwrap(), written);
    let done = stage.paths(&remove(&["/etc/none", "/etc/never"])).await.unwrap();
    assert_eq!(done.removed, ["/etc/none"]);
    assert!(done.notes.iter().any(|n| n.contains("/etc/never was not")), "{:?}", done.notes);
    let all = remove(&["/etc/hosts", "/etc/my dir", "/etc/ovirt-engine/x"]);
    let done = stage.paths(&all).await.unwrap();
    assert!(done.paths.is_empty() && stage.on_manager(FILE).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_wrote_stays_and_what_harms_is_refused() {
    let stage = Stage::new("4.5.7");
    let file = stage.sshd.root().join(FILE);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    let other = file.with_file_name("90-mine.sh");
    fs::write(&other, "BACKUP_PATHS=mine\n").unwrap();
    for bad in ["/etc/$(id)", "etc", "/var/lib", "/a\nb"] {
        let error = stage.paths(&add(&["/etc/hosts", bad])).await.unwrap_err();
        assert_eq!(error.exit_code(), 2, "{bad}: {}", text(&error));
        assert!(!file.exists());
    }
    nix::unistd::mkfifo(&stage.sshd.root().join("etc/pipe"), nix::sys::stat::Mode::S_IRWXU)
        .unwrap();
    let error = stage.paths(&add(&["/etc/pipe"])).await.unwrap_err();
    assert!(text(&error).contains("a device, a pipe"), "{}", text(&error));
    fs::write(&file, "BACKUP_PATHS=hand-made\n").unwrap();
    let error = stage.paths(&add(&["/etc/hosts"])).await.unwrap_err();
    assert!(text(&error).contains("lacks hvbak's mark"), "{}", text(&error));
    assert_eq!(stage.on_manager(FILE).unwrap(), "BACKUP_PATHS=hand-made\n");
    fs::remove_file(&file).unwrap();
    let done = stage.paths(&add(&["/etc/hosts"])).await.unwrap();
    assert_eq!(done.others, ["/etc/ovirt-engine-backup/engine-backup-config.d/90-mine.sh"]);
    assert_eq!(fs::read_to_string(&other).unwrap(), "BACKUP_PATHS=mine\n");
    let none = Stage::new("");
    assert!(none.paths(&add(&["/etc/hosts"])).await.is_err());
    assert_eq!(none.on_manager(FILE), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_says_which_extra_files_it_lacks() {
    let stage = Stage::new("4.5.7");
    fs::create_dir_all(stage.sshd.root().join("etc")).unwrap();
    fs::write(stage.sshd.root().join("etc/hosts"), "x").unwrap();
    stage.paths(&add(&["/etc/hosts", "/etc/grafana/x"])).await.unwrap();
    stage.play("b_ok_all");
    stage.archive("4.5.7-all.backup");
    // The recorded archive was made without them.
    let done = stage.backup(&["all"]).await.unwrap();
    let warnings = done.point.manifest.warnings.join("\n");
    assert!(warnings.contains("/etc/hosts is in the list of"), "{warnings}");
    assert!(!warnings.contains("/etc/grafana/x"), "{warnings}");
}
