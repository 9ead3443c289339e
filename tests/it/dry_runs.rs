//! `TryPlugin`: how a plugin would answer to what a tenant has, on a running cluster.

use std::time::Duration;

use tonic::{Code, Request, Status};
use witan_wire::v1;

use crate::harness::{Api, Dev, Guest, Plugins, Process, Refusal, eventually, read, write};

const RESOLVER: &str = "conflict-resolver";
const POLICY: &str = "consistency-policy";
const ROUTING: &str = "routing-hook";

/// A cluster, and a tenant with siblings.
struct Scene {
    dev: Dev,
    api: Api,
    plugins: Plugins,
}

impl Scene {
    async fn start() -> Self {
        let dev = Dev::start().await;
        let (api, plugins) = (dev.api(), Plugins::new(dev.address()));
        api.siblings_tenant("t").await;
        Self { dev, api, plugins }
    }

    /// Writes these values of a key at the same time.
    async fn conflict(&self, key: &str, values: [&'static str; 2]) {
        for value in values {
            self.api.write(write("t", key, value)).await.expect("write");
        }
    }

    async fn upload(&self, component: Vec<u8>) -> String {
        self.plugins.send(component).await.expect("upload").digest
    }

    async fn attempt(&self, hook: &str, plugin: &str) -> Result<v1::TryPluginResponse, Status> {
        self.attempt_with(request(hook, plugin)).await
    }

    async fn attempt_with(&self, request: v1::TryPluginRequest) -> Result<v1::TryPluginResponse, Status> {
        Ok(self.plugins.client().try_plugin(request).await?.into_inner())
    }
}

fn request(hook: &str, plugin: &str) -> v1::TryPluginRequest {
    let (tenant_id, hook, plugin) = ("t".to_owned(), hook.to_owned(), plugin.to_owned());
    v1::TryPluginRequest { tenant_id, hook, plugin, ..v1::TryPluginRequest::default() }
}

/// Picks the first sibling if it has seven bytes, and otherwise keeps all.
fn sevens() -> Vec<u8> {
    let resolver = Guest::resolver("sevens").with(|guest| {
        let sevens = "(i32.eq (i32.load offset=4 (local.get 2)) (i32.const 7))";
        guest.answer = format!("(if (result i32) {sevens} (then (i32.const 700)) (else {}))", guest.answer);
    });
    resolver.build()
}

#[tokio::test]
async fn a_resolver_is_asked_about_the_conflicts_that_there_are() {
    let scene = Scene::start().await;
    for (key, values) in [("one", ["a", "b"]), ("two", ["seven-1", "seven-2"]), ("three", ["c", "d"])] {
        scene.conflict(key, values).await;
    }
    for number in 0..20 {
        scene.api.write(write("t", &format!("settled-{number}"), "value")).await.expect("write");
    }
    let sevens = scene.upload(sevens()).await;
    let tried = scene.attempt(RESOLVER, &sevens).await.expect("tried");
    assert_eq!((tried.asked, tried.equal, tried.differing, tried.keys), (3, 2, 1, 23), "{tried:?}");
    assert_eq!((&*tried.source, &*tried.in_force, tried.complete), ("conflicts", "", true), "{tried:?}");
    assert_eq!(tried.plugin.as_ref().expect("the plugin").digest, sevens);
    let case = &tried.cases[0];
    assert_eq!((&case.key[..], &*case.in_force), (&b"two"[..], "keeps all"), "{case:?}");
    assert!(case.tried.starts_with(r#"picks "seven-"#), "{case:?}");

    // Nothing is bound, and nothing has changed.
    let found = scene.api.read(read("t", "two")).await.expect("read");
    assert_eq!((found.siblings.len(), &*found.resolved_by), (2, "native"), "{found:?}");
    let fewer = v1::TryPluginRequest { sample: Some(1), ..request(RESOLVER, "sevens") };
    let fewer = scene.attempt_with(fewer).await.expect("tried");
    assert_eq!((fewer.asked, fewer.complete), (1, true), "{fewer:?}");

    // Compared with what is bound.
    scene.plugins.bind("t", RESOLVER, &sevens).await.expect("bound");
    let keeps = scene.upload(Guest::resolver("keeps").build()).await;
    let tried = scene.attempt(RESOLVER, &keeps).await.expect("tried");
    assert_eq!((tried.asked, tried.differing), (3, 1), "{tried:?}");
    assert!(tried.in_force.starts_with("sevens@") && tried.cases[0].tried == "keeps all", "{tried:?}");
}

#[tokio::test]
async fn a_policy_is_asked_what_was_asked_last_and_a_routing_hook_about_keys() {
    let scene = Scene::start().await;
    for number in 0..5 {
        scene.api.write(write("t", &format!("key-{number}"), "value")).await.expect("write");
    }
    let (one, three) = (Guest::policy("one", 1).build(), Guest::policy("three", 3).build());
    let (one, three) = (scene.upload(one).await, scene.upload(three).await);
    let tried = scene.attempt(POLICY, &three).await.expect("tried");
    // A read and a write of each key, of which the native rule requires two of three replicas.
    assert_eq!((&*tried.source, tried.asked, tried.differing, tried.keys), ("keys", 10, 10, 5), "{tried:?}");
    let asked: Vec<&str> = tried.cases.iter().map(|case| case.question.split(' ').next().unwrap_or_default()).collect();
    assert!(asked.contains(&"read") && asked.contains(&"write"), "{asked:?}");

    scene.plugins.bind("t", POLICY, &one).await.expect("bound");
    scene.api.read(read("t", "key-1")).await.expect("read");
    let tried = scene.attempt(POLICY, &three).await.expect("tried");
    assert_eq!((&*tried.source, tried.asked, tried.differing), ("recent", 1, 1), "{tried:?}");
    assert_eq!((&tried.cases[0].key[..], tried.cases[0].question.starts_with("read at level")), (&b"key-1"[..], true));

    let routing = scene.upload(Guest::routing("all-in-p").build()).await;
    let tried = scene.attempt(ROUTING, &routing).await.expect("tried");
    assert_eq!((&*tried.source, tried.asked, tried.moving), ("keys", 5, 5), "{tried:?}");
    assert!(tried.cases[0].tried.starts_with(r#"partition "p", read from "#), "{tried:?}");
}

#[tokio::test]
async fn what_cannot_be_tried_is_refused_with_the_field_and_the_remedy() {
    let scene = Scene::start().await;
    let sevens = scene.upload(sevens()).await;
    let all = request(RESOLVER, &sevens);
    for (wrong, code, said) in [
        (v1::TryPluginRequest { sample: Some(0), ..all.clone() }, Code::InvalidArgument, "use 1 to 1000"),
        (v1::TryPluginRequest { sample: Some(1001), ..all.clone() }, Code::InvalidArgument, "use 1 to 1000"),
        (v1::TryPluginRequest { tenant_id: String::new(), ..all.clone() }, Code::InvalidArgument, "name the tenant"),
        (v1::TryPluginRequest { tenant_id: "nobody".to_owned(), ..all.clone() }, Code::NotFound, "tenant nobody"),
        (v1::TryPluginRequest { plugin: String::new(), ..all.clone() }, Code::InvalidArgument, "name the plugin"),
        (request(RESOLVER, "unknown@1.0.0"), Code::NotFound, "upload it"),
        (request(POLICY, &sevens), Code::InvalidArgument, "is a conflict-resolver"),
        (request("policy", &sevens), Code::InvalidArgument, "is not a hook"),
        (
            v1::TryPluginRequest { configuration: vec![b'x'; (64 << 10) + 1].into(), ..all.clone() },
            Code::InvalidArgument,
            "at most 65536",
        ),
    ] {
        let refusal = Refusal::from(scene.attempt_with(wrong.clone()).await.expect_err("refused"));
        assert_eq!(refusal.code, code, "{wrong:?}: {refusal:?}");
        assert!(refusal.message.contains(said), "{wrong:?}: {refusal:?}");
    }
}

/// It loops for as long as any call may, is counted, and takes a tenth of a core at most; and clients that go away leave nothing behind.
#[tokio::test]
async fn a_hostile_plugin_is_told_of_and_clients_that_go_away_leave_their_turns() {
    let scene = Scene::start().await;
    for number in 0..12 {
        scene.conflict(&format!("conflict-{number}"), ["a", "b"]).await;
    }
    let endless = Guest::resolver("endless").when_triggered("(loop $again (br $again))").build();
    let endless = scene.upload(endless).await;
    let few = v1::TryPluginRequest { sample: Some(2), ..request(RESOLVER, &endless) };
    let tried = scene.attempt_with(few.clone()).await.expect("a fault is no failure of the call");
    assert_eq!((tried.asked, tried.faulted, tried.complete), (2, 2, true), "{tried:?}");
    assert!(tried.cases.iter().all(|case| case.tried.contains("CPU time")), "{tried:?}");

    // A client with little time gets what there is.
    let mut hurried = Request::new(request(RESOLVER, &endless));
    hurried.set_timeout(Duration::from_secs(3));
    let tried = scene.plugins.client().try_plugin(hurried).await.expect("an answer in time").into_inner();
    assert!(tried.asked < 12 && tried.faulted == tried.asked && !tried.complete, "{tried:?}");

    // One more than operators may have: it is refused at once, the others are under way.
    let slow = || {
        let (mut client, request) = (scene.plugins.client(), request(RESOLVER, &endless));
        tokio::spawn(async move { client.try_plugin(request).await.map(drop) })
    };
    let (ended, _, running) = futures::future::select_all((0..5).map(|_| slow())).await;
    let refused = Refusal::from(ended.expect("joined").expect_err("refused"));
    assert_eq!(refused.code, Code::ResourceExhausted, "{refused:?}");
    running.iter().for_each(tokio::task::JoinHandle::abort);
    let again = eventually("a turn is free", async || scene.attempt_with(few.clone()).await.ok()).await;
    assert_eq!(again.faulted, again.asked, "{again:?}");
    let found = scene.api.read(read("t", "conflict-1")).await.expect("read");
    assert_eq!(found.siblings.len(), 2, "requests do not notice");
}

#[tokio::test]
async fn the_command_shows_where_answers_differ() {
    let scene = Scene::start().await;
    scene.conflict("one", ["a", "b"]).await;
    scene.conflict("two", ["seven-1", "seven-\u{1b}"]).await;
    scene.upload(sevens()).await;
    let run = async |more: &'static [&'static str]| {
        let mut command = Process::witan();
        command.args(["plugin", "try", "sevens@1.0.0", "--tenant", "t", "--hook", RESOLVER]).args(more);
        command
            .arg("--timeout=60s")
            .env("WITAN_ENDPOINT", format!("http://{}", scene.dev.address()))
            .env_remove("RUST_LOG");
        let output = tokio::task::spawn_blocking(move || command.output()).await.expect("joined").expect("run");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    let text = run(&[]).await;
    assert!(text.starts_with("sevens@1.0.0 (") && text.contains("compared with the native rule: asked 2"), "{text}");
    assert!(text.contains("1 equal, 1 differing, 0 faulted, 0 declined"), "{text}");
    assert!(text.contains("keeps all") && !text.contains('\u{1b}'), "{text}");
    let json: serde_json::Value = serde_json::from_str(&run(&["--output", "json"]).await).expect("JSON");
    assert_eq!((&json["asked"], &json["differing"], &json["cases"][0]["key"]), (&2.into(), &1.into(), &"two".into()));
}
