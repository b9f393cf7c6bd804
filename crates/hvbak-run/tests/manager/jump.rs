//! The manager behind a jump host.

use hvbak_run::RunError;

use crate::{
    sshd::{Sshd, current_user, free_port},
    stage::{Stage, options, text},
};

#[tokio::test(flavor = "multi_thread")]
async fn the_manager_is_reached_through_the_jump_host_only() {
    let stage = Stage::new("4.5.7");
    stage.play("b_ok_all");
    stage.archive("4.5.7-all.backup");
    let gate = Sshd::start();
    gate.authorize(&std::fs::read_to_string(stage.sshd.path().join("key.pub")).unwrap());
    let through = |port: u16| {
        let mut context = stage.context();
        let mut settings = hvbak_run::Settings::clone(&context.settings);
        let place = format!("{}@127.0.0.1:{port}", current_user());
        settings.ssh.jump = Some((place, Some(gate.host_key("ed25519"))));
        context.settings = std::sync::Arc::new(settings);
        context
    };
    let error =
        hvbak_run::manager_backup(&through(free_port()), &options(&["all"])).await.unwrap_err();
    assert!(matches!(error, RunError::Ssh { .. }), "{}", text(&error));
    assert!(!stage.sshd.root().join("calls").exists());
    let done = hvbak_run::manager_backup(&through(gate.port), &options(&["all"])).await.unwrap();
    assert_eq!(done.point.manifest.scopes.len(), 5);
    assert!(gate.log().contains("Accepted publickey"), "{}", gate.log());
}
