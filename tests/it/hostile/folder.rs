//! What is in the plugin folder, and what others compile, holds up neither a start nor the way back to an earlier version.

use std::fs;
use std::process::Command;

use tonic::Code;
use tonic_types::StatusExt;

use super::Target;
use super::bomb::{busy, one_compiling};
use crate::harness::{Plugins, eventually};

const POLICY: &str = "consistency-policy";
/// A tenant with a policy.
const BOUND: &str = "bound";

/// Binds two versions, of which the first can be gone back to.
async fn bound_twice(plugins: &Plugins, policy: &str) {
    for configuration in ["busy = 100", "busy = 200"] {
        plugins.bind_with(BOUND, POLICY, policy, configuration).await.expect("bound");
    }
}

/// A FIFO to which nobody writes: whoever opens it without care waits for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_fifo_in_the_plugin_folder() {
    let folder = tempfile::tempdir().expect("make a folder");
    let fifo = folder.path().join("a-fifo.wasm");
    assert!(Command::new("mkfifo").arg(&fifo).status().expect("run mkfifo").success());
    let good = folder.path().join("good.wasm");
    fs::write(&good, Plugins::component("adaptive-latency")).expect("write a file");
    let watched = folder.path().to_str().expect("a path in UTF-8");
    let mut target = Target::start_with(&[("WITAN_PLUGINS__FOLDER", watched)]).await;
    target.api().tenant(BOUND, |_| {}).await;
    for start in 1..=2 {
        let plugins = Plugins::new(target.address());
        // A name waits for the folder.
        bound_twice(&plugins, "adaptive-latency").await;
        plugins.roll_back(BOUND, POLICY).await.expect("rolled back");
        plugins.bind(BOUND, POLICY, "").await.expect("unbound");
        target.friend.served(20).await;
        eventually("the log names the file", async || {
            let log = target.cluster.coordinator_log();
            (log.lines().filter(|line| line.contains("a-fifo.wasm") && line.contains("FIFO")).count() >= start)
                .then_some(())
        })
        .await;
        if start == 1 {
            target = target.restarted().await;
        }
    }
    target.withstands("a FIFO in the plugin folder", 100, ()).await;
}

/// More components at once than are compiled at a time: each has its turn, none is refused because others are being compiled, and a
/// rollback and an unbinding wait for none of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_way_back_while_others_compile() {
    let mut target = Target::start().await;
    let plugins = Plugins::new(target.address());
    let policy = plugins.upload("adaptive-latency").await;
    target.api().tenant(BOUND, |_| {}).await;
    bound_twice(&plugins, &policy).await;
    let mut uploads = Vec::from(["a", "b", "c", "d"].map(|name| {
        let plugins = Plugins::new(target.address());
        tokio::spawn(async move { plugins.send(busy(name)).await })
    }));
    one_compiling(target.cluster.coordinator().id()).await;
    plugins.roll_back(BOUND, POLICY).await.expect("rolled back");
    plugins.bind(BOUND, POLICY, "").await.expect("unbound");
    // Together they take ten seconds or more.
    assert!(uploads.iter().any(|upload| !upload.is_finished()), "the way back has waited for what others compile");
    for upload in &mut uploads {
        let refused = upload.await.expect("no panic").expect_err("it only looks like a policy");
        let reason = refused.get_details_error_info().map(|info| info.reason).unwrap_or_default();
        assert_eq!((refused.code(), reason.as_str()), (Code::FailedPrecondition, "PLUGIN_REFUSED"), "{refused}");
    }
    target.withstands("a way back while others compile", 100, ()).await;
}
