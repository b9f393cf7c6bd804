//! What a crash at any byte leaves is what `cleanup` sees.

use serde_json::json;

use super::*;
use crate::Repository;

fn repository() -> (tempfile::TempDir, Repository) {
    let dir = tempfile::tempdir().unwrap();
    let repository = Repository::init(dir.path().join("r")).unwrap();
    (dir, repository)
}

#[test]
fn steps_are_seen_with_their_state() {
    let (_dir, repository) = repository();
    let job = JobId::random();
    let journal = repository.journal(job).unwrap();
    let a = journal.intent(&json!({"step": "snapshot"})).unwrap();
    let b = journal.intent("disk").unwrap();
    let c = journal.intent(&json!({"step": "vm"})).unwrap();
    journal.done(a, &json!({"id": 7})).unwrap();
    journal.done(b, &()).unwrap();
    journal.undone(b).unwrap();
    let views = repository.open_journals().unwrap();
    assert_eq!(views.len(), 1);
    let view = &views[0];
    assert!(view.alive && view.damage.is_none() && view.job == job);
    assert_eq!(view.holder.as_ref().unwrap().pid, std::process::id());
    let states: Vec<_> = view.steps.iter().map(|s| (s.id, s.state)).collect();
    assert_eq!(states, [(a, StepState::Done), (b, StepState::Undone), (c, StepState::Intent)]);
    assert_eq!(view.steps[0].result, json!({"id": 7}));
    assert_eq!(view.unsettled().map(|s| s.id).collect::<Vec<_>>(), [c, a]);
    assert!(matches!(
        repository.adopt_journal(job, JobId::random()),
        Err(Error::Locked { holder: Some(_), .. })
    ));
    drop(journal);
    assert!(!repository.open_journals().unwrap()[0].alive);
    let (journal, view) = repository.adopt_journal(job, JobId::random()).unwrap();
    assert_eq!(view.steps.len(), 3);
    journal.undone(c).unwrap();
    assert_eq!(journal.intent("more").unwrap(), StepId(4));
    journal.close().unwrap();
    assert!(repository.open_journals().unwrap().is_empty());
}

#[test]
fn a_cut_at_any_byte_loses_only_what_was_not_acknowledged() {
    let (_dir, repository) = repository();
    let job = JobId::random();
    let journal = repository.journal(job).unwrap();
    let path = repository.layout.journal(job);
    let mut acknowledged = vec![fs::metadata(&path).unwrap().len()];
    for n in 0..4 {
        let id = journal.intent(&json!({ "n": n, "text": "line\nbreak" })).unwrap();
        acknowledged.push(fs::metadata(&path).unwrap().len());
        journal.done(id, &n).unwrap();
    }
    drop(journal);
    let whole = fs::read(&path).unwrap();
    for cut in 0..whole.len() as u64 {
        fs::write(&path, &whole[..cut as usize]).unwrap();
        let (journal, view) = repository.adopt_journal(job, JobId::random()).unwrap();
        assert_eq!(view.damage, None, "cut at {cut}");
        let expected = acknowledged.iter().skip(1).filter(|end| **end <= cut).count();
        assert_eq!(view.steps.len(), expected, "cut at {cut}");
        // What is appended after the cut is read again.
        let id = journal.intent("after").unwrap();
        drop(journal);
        let view = repository.open_journals().unwrap().remove(0);
        assert_eq!((view.damage.clone(), view.steps.len()), (None, expected + 1));
        assert_eq!(view.steps.last().unwrap().id, id);
    }
}

#[test]
fn damage_in_the_middle_is_told() {
    let (_dir, repository) = repository();
    let job = JobId::random();
    let journal = repository.journal(job).unwrap();
    journal.intent("a").unwrap();
    journal.intent("b").unwrap();
    drop(journal);
    let path = repository.layout.journal(job);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replacen("intent", "in\u{0}ent", 1)).unwrap();
    let view = repository.open_journals().unwrap().remove(0);
    assert_eq!(view.damage.as_deref(), Some("line 2 makes no sense"));
    assert_eq!(view.steps.len(), 1);
}

#[test]
fn tasks_share_a_journal() {
    let (_dir, repository) = repository();
    let journal = repository.journal(JobId::random()).unwrap();
    std::thread::scope(|scope| {
        for task in 0..4 {
            let journal = &journal;
            scope.spawn(move || {
                for _ in 0..8 {
                    let id = journal.intent(&task).unwrap();
                    journal.done(id, &task).unwrap();
                }
            });
        }
    });
    let view = repository.open_journals().unwrap().remove(0);
    assert_eq!((view.damage, view.steps.len()), (None, 32));
    assert!(view.steps.iter().all(|s| s.state == StepState::Done && s.step == s.result));
}
