//! `UploadPlugin` for clients that do not wait: how far a push has come, at every coordinator, also after one of them has died.

use std::path::Path;

use bytes::Bytes;
use tonic::{Code, Status};
use witan_wire::v1;
use witan_wire::v1::upload_plugin_request::Part;

use crate::harness::{Company, Dev, Guest, Plugins, Process, Refusal, eventually};

const POLICY: &str = "consistency-policy";

/// A policy that takes a second or more to compile.
fn slow_to_compile(name: &str) -> Vec<u8> {
    let sum = "(i32.add (local.get 0) (i32.mul (local.get 0) ".repeat(40) + "(local.get 0)" + &"))".repeat(40);
    let function = format!("(func (param i32) (result i32) {sum})");
    Guest::policy(name, 1).with(|guest| guest.fields += &function.repeat(1500)).build()
}

/// Pushes a component of a tenant without waiting for it.
async fn push(plugins: &Plugins, tenant: &str, component: &[u8]) -> Result<v1::PluginInfo, Status> {
    let part = |part| v1::UploadPluginRequest { part: Some(part) };
    let tenant_id = tenant.to_owned();
    let manifest = v1::UploadPluginManifest { tenant_id, wait: Some(false), ..Default::default() };
    let chunks = component.chunks(1 << 20).map(|chunk| part(Part::Chunk(Bytes::copy_from_slice(chunk))));
    let parts: Vec<_> = std::iter::once(part(Part::Manifest(manifest))).chain(chunks).collect();
    let answer = plugins.client().upload_plugin(tokio_stream::iter(parts)).await?.into_inner();
    Ok(answer.plugin.expect("a plugin"))
}

async fn get(plugins: &Plugins, tenant: &str, plugin: &str) -> Result<v1::PluginInfo, Status> {
    let request = v1::GetPluginRequest { plugin: plugin.to_owned(), tenant_id: tenant.to_owned() };
    Ok(plugins.client().get_plugin(request).await?.into_inner().plugin.expect("a plugin"))
}

fn is_under_way(plugin: &v1::PluginInfo) -> bool {
    matches!(plugin.state.as_str(), "staged" | "compiling")
}

/// Waits until the push has ended, as this coordinator sees it.
async fn ended(plugins: &Plugins, tenant: &str, digest: &str) -> v1::PluginInfo {
    eventually("the push ends", async || {
        let seen = get(plugins, tenant, digest).await.expect("it is on record");
        (!is_under_way(&seen)).then_some(seen)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_coordinator_tells_how_far_a_push_is() {
    let company = Company::of(2).await;
    let [first, second] = [0, 1].map(|at: usize| Plugins::new(company.coordinators[at].address));
    company.api(0).tenant("t", |_| {}).await;
    let component = slow_to_compile("slow");
    let pushed = push(&first, "", &component).await.expect("received");
    assert_eq!((pushed.state.as_str(), pushed.size, pushed.name.as_str()), ("staged", component.len() as u64, ""));
    let seen = get(&second, "t", &pushed.digest).await.expect("known everywhere");
    assert!(is_under_way(&seen) && seen.reason.is_empty(), "{seen:?}");
    let same = push(&second, "", &component).await.expect("received");
    assert_eq!(same.digest, pushed.digest);
    // Binding waits for it, on either side.
    second.bind("t", POLICY, &pushed.digest).await.expect("bound once it was ready");
    let ready = get(&second, "t", &pushed.digest).await.expect("known");
    assert_eq!((ready.state.as_str(), ready.name.as_str()), ("ready", "slow"));

    let junk = push(&first, "t", b"\0asm\x0d\0\x01\0").await.expect("received");
    let refused = ended(&second, "t", &junk.digest).await;
    assert_eq!((refused.state.as_str(), refused.tenant_id.as_str()), ("refused", "t"));
    assert!(!refused.reason.is_empty(), "{refused:?}");
    let bound = Refusal::from(second.bind("t", POLICY, &junk.digest).await.expect_err("it was refused"));
    assert_eq!((bound.code, bound.reason.as_str()), (Code::FailedPrecondition, "PLUGIN_REFUSED"));
    assert!(bound.message.contains(&refused.reason), "{bound:?}");
    let other = get(&first, "", &junk.digest).await.expect_err("it is the tenant's");
    assert_eq!(Refusal::from(other).code, Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_bound_too_early_says_how_far_it_is() {
    let dev = Dev::start().await;
    let plugins = Plugins::new(dev.address());
    dev.api().tenant("t", |_| {}).await;
    let pushed = push(&plugins, "t", &slow_to_compile("slow")).await.expect("received");
    let mut request = tonic::Request::new(v1::BindPluginRequest {
        tenant_id: "t".to_owned(),
        hook: POLICY.to_owned(),
        plugin: pushed.digest.clone(),
        ..Default::default()
    });
    // Shorter than two looks: it is answered without waiting.
    request.set_timeout(std::time::Duration::from_millis(450));
    let early = Refusal::from(plugins.client().bind_plugin(request).await.expect_err("it is not ready"));
    assert_eq!((early.code, early.reason.as_str()), (Code::FailedPrecondition, "PLUGIN_NOT_READY"), "{early:?}");
    assert!(early.message.contains(&format!("witan plugin show {} --tenant t", pushed.digest)), "{early:?}");
    assert_eq!(ended(&plugins, "t", &pushed.digest).await.state, "ready");
    plugins.bind("t", POLICY, &pushed.digest).await.expect("bound");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_a_death_has_interrupted_is_given_up_and_can_be_repeated() {
    let folder = tempfile::tempdir().expect("make a folder");
    let component = slow_to_compile("slow");
    let mut dev = Dev::start_in(folder.path()).await;
    let pushed = push(&Plugins::new(dev.address()), "", &component).await.expect("received");
    dev.process().kill();
    drop(dev);
    let dev = Dev::start_in(folder.path()).await;
    let plugins = Plugins::new(dev.address());
    let seen = get(&plugins, "", &pushed.digest).await.expect("it is on record");
    assert_eq!(seen.state, "refused");
    assert!(seen.reason.contains("was stopped") && seen.reason.contains("push it again"), "{seen:?}");
    let again = push(&plugins, "", &component).await.expect("received");
    assert!(is_under_way(&again), "{again:?}");
    assert_eq!(ended(&plugins, "", &pushed.digest).await.state, "ready");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_waits_or_does_not() {
    let (dev, folder) = (Dev::start().await, tempfile::tempdir().expect("make a folder"));
    let (good, bad) = (folder.path().join("good.wasm"), folder.path().join("bad.wasm"));
    std::fs::write(&good, Guest::policy("good", 1).build()).expect("write a file");
    std::fs::write(&bad, b"\0asm\x0d\0\x01\0").expect("write a file");
    let endpoint = format!("http://{}", dev.address());
    let witan = async |arguments: &[&str], file: &Path| {
        let mut command = Process::witan();
        command
            .args(["--endpoint", &endpoint, "--output", "json", "--timeout", "60s", "plugin"])
            .args(arguments)
            .arg(file);
        let output = tokio::task::spawn_blocking(move || command.output()).await.expect("joined").expect("run witan");
        let said = serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap_or_default();
        (output.status.success(), said)
    };
    let (done, said) = witan(&["push", "--no-wait"], &good).await;
    assert!(done && said["plugins"][0]["state"] == "staged", "{said}");
    let digest = said["plugins"][0]["digest"].as_str().expect("a digest").to_owned();
    ended(&Plugins::new(dev.address()), "", &digest).await;
    let (done, said) = witan(&["push"], &good).await;
    assert!(done && said["plugins"][0]["state"] == "ready" && said["plugins"][0]["name"] == "good", "{said}");

    let (done, said) = witan(&["push", "--no-wait"], &bad).await;
    assert!(done && said["plugins"][0]["state"] == "staged", "{said}");
    let digest = said["plugins"][0]["digest"].as_str().expect("a digest").to_owned();
    ended(&Plugins::new(dev.address()), "", &digest).await;
    let (done, said) = witan(&["show"], Path::new(&digest)).await;
    assert!(done && said["state"] == "refused" && said["reason"].as_str().is_some_and(|why| !why.is_empty()), "{said}");
    let (done, said) = witan(&["push"], &bad).await;
    assert!(!done && said.to_string().contains("PLUGIN_REFUSED"), "{said}");
}
