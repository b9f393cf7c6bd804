//! Making, opening and refusing.

use std::os::unix::fs::PermissionsExt;

use super::*;

#[test]
fn init_makes_a_private_repository_that_opens() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/b");
    let made = Repository::init(&path).unwrap();
    let opened = Repository::open(&path).unwrap();
    assert_eq!(made.id(), opened.id());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    for sub in ["vms", "locks", "journal"] {
        assert_eq!(fs::metadata(path.join(sub)).unwrap().permissions().mode() & 0o777, 0o700);
    }
    assert!(matches!(Repository::init(&path), Err(Error::AlreadyRepository { .. })));
    assert_eq!(opened.all_points().unwrap().points.len(), 0);
    assert!(opened.vms().unwrap().is_empty());
}

#[test]
fn foreign_directories_are_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Repository::open(dir.path()), Err(Error::NoRepository { .. })));
    assert!(matches!(Repository::open(dir.path().join("none")), Err(Error::NoRepository { .. })));
    fs::write(dir.path().join("thesis.txt"), "x").unwrap();
    assert!(matches!(Repository::init(dir.path()), Err(Error::NotEmpty { .. })));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    assert!(matches!(
        Repository::open(dir.path().join("thesis.txt")),
        Err(Error::NoRepository { .. })
    ));
}

#[test]
fn an_interrupted_init_can_be_repeated() {
    let dir = tempfile::tempdir().unwrap();
    for left in ["vms", "locks"] {
        fs::create_dir(dir.path().join(left)).unwrap();
    }
    fs::write(dir.path().join(".hvbak-repository.json.tmp"), "{").unwrap();
    Repository::init(dir.path()).unwrap();
    Repository::open(dir.path()).unwrap();
}

#[test]
fn a_newer_format_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    Repository::init(dir.path()).unwrap();
    fs::write(dir.path().join(REPOSITORY), r#"{"format":2,"uuid":"?"}"#).unwrap();
    let error = Repository::open(dir.path()).unwrap_err();
    assert!(matches!(error, Error::NewerFormat { found: 2, known: 1, .. }));
    fs::write(dir.path().join(REPOSITORY), "{").unwrap();
    assert!(matches!(Repository::open(dir.path()), Err(Error::Parse { .. })));
}

#[test]
fn space_that_is_not_there_is_refused_with_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let repository = Repository::init(dir.path()).unwrap();
    let free = repository.free_bytes().unwrap();
    repository.ensure_space(0, 0).unwrap();
    let error = repository.ensure_space(free / 2, free).unwrap_err();
    let Error::NoSpace { needed: Some(needed), .. } = &error else { panic!("{error}") };
    assert_eq!(*needed, free / 2 + free);
    assert!(error.hint().unwrap().contains("reserve_gib"));
    assert!(repository.ensure_space(u64::MAX, u64::MAX).is_err());
}
