//! The command line as people and scripts use it: what it prints, and its exit codes.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Output, Stdio};

use serde_json::{Value, json};

use crate::harness::{Dev, Guest, Plugins, Process, write};

/// The command line with the endpoint of one cluster.
struct Cli {
    endpoint: String,
}

impl Cli {
    fn of(dev: &Dev) -> Self {
        Self { endpoint: format!("http://{}", dev.address()) }
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        self.run_with(arguments, b"").await
    }

    async fn run_with(&self, arguments: &[&str], input: &'static [u8]) -> Output {
        let mut command = Process::witan();
        command.args(arguments).args(["--timeout", "60s"]).env("WITAN_ENDPOINT", &self.endpoint);
        command.env_remove("RUST_LOG").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let run = move || {
            let mut child = command.spawn().expect("start witan");
            let mut stdin = child.stdin.take().expect("stdin is piped");
            // A command that does not read its input closes it.
            let _ = stdin.write_all(input);
            drop(stdin);
            child.wait_with_output().expect("wait for witan")
        };
        tokio::task::spawn_blocking(run).await.expect("run witan")
    }

    /// Runs a command that must succeed, and returns the one object that it prints.
    async fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["--output", "json"]].concat()).await;
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(&output.stdout)))
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn a_value_goes_in_and_comes_out_as_it_is() {
    let dev = Dev::start().await;
    let cli = Cli::of(&dev);
    let created = cli.json(&["tenant", "create", "demo", "--read-repair", "blocking"]).await;
    assert_eq!((&created["outcome"], &created["read_repair"]), (&json!("created"), &json!("blocking")));

    let put = cli.run_with(&["kv", "put", "-t", "demo", "photo", "-"], &[0, 255, 10]).await;
    assert!(put.status.success(), "{}", text(&put.stderr));
    let get = cli.run(&["kv", "get", "-t", "demo", "photo"]).await;
    assert_eq!(get.stdout, [0, 255, 10]);

    let written = cli.json(&["kv", "put", "-t", "demo", "greeting", "hello", "--idempotency-key", "once"]).await;
    let repeated = cli.json(&["kv", "put", "-t", "demo", "greeting", "hello", "--idempotency-key", "once"]).await;
    assert_eq!((&written["is_duplicate"], &repeated["is_duplicate"]), (&json!(false), &json!(true)));
    let read = cli.json(&["kv", "get", "-t", "demo", "greeting"]).await;
    assert_eq!((&read["value"], &read["found"]), (&json!("hello"), &json!(true)));

    let context = read["context"].as_str().expect("a context");
    cli.json(&["kv", "delete", "-t", "demo", "greeting", "--context", context]).await;
    let gone = cli.run(&["kv", "get", "-t", "demo", "greeting", "--output", "json"]).await;
    assert_eq!(gone.status.code(), Some(3));
    let gone: Value = serde_json::from_slice(&gone.stdout).expect("an object");
    assert_eq!(gone["found"], json!(false));
    assert!(gone["context"].is_string(), "a missing key has a context too: {gone}");
}

#[tokio::test]
async fn siblings_are_shown_and_a_context_settles_them() {
    let dev = Dev::start().await;
    let cli = Cli::of(&dev);
    cli.json(&["tenant", "create", "carts", "--conflict-mode", "siblings"]).await;
    for value in ["one", "two"] {
        cli.json(&["kv", "put", "-t", "carts", "cart", value]).await;
    }
    let shown = cli.run(&["kv", "get", "-t", "carts", "cart", "--consistency", "all"]).await;
    let (out, notes) = (text(&shown.stdout), text(&shown.stderr));
    assert!(out.contains("sibling 1 of 2") && out.contains("one") && out.contains("two"), "{out}");
    assert!(notes.contains("context: "), "{notes}");

    let read = cli.json(&["kv", "get", "-t", "carts", "cart", "--consistency", "all"]).await;
    assert_eq!(read["siblings"].as_array().map(Vec::len), Some(2));
    let context = read["context"].as_str().expect("a context");
    cli.json(&["kv", "put", "-t", "carts", "cart", "both", "--context", context]).await;
    let read = cli.json(&["kv", "get", "-t", "carts", "cart", "--consistency", "all"]).await;
    assert_eq!((&read["value"], &read["siblings"]), (&json!("both"), &json!([])));
}

#[tokio::test]
async fn a_plugin_that_has_not_answered_is_shown_with_the_reason() {
    let dev = Dev::start().await;
    let cli = Cli::of(&dev);
    cli.json(&["tenant", "create", "carts", "--conflict-mode", "siblings"]).await;
    let plugins = Plugins::new(dev.address());
    for (hook, guest) in [
        ("conflict-resolver", Guest::resolver("cart").when_triggered("unreachable")),
        ("consistency-policy", Guest::policy("lenient", 1).when_triggered("unreachable")),
    ] {
        let digest = plugins.send(guest.build()).await.expect("uploaded").digest;
        plugins.bind("carts", hook, &digest).await.expect("bound");
    }
    for value in ["a", "b"] {
        let put = cli.json(&["kv", "put", "-t", "carts", "trolley", value]).await;
        assert_eq!(put["policy_fault"], Value::Null);
    }
    let shown = cli.run(&["kv", "get", "-t", "carts", "trolley"]).await;
    let notes = text(&shown.stderr);
    assert!(notes.contains("the conflict resolver has not decided: cart@") && notes.contains("trapped"), "{notes}");
    let read = cli.json(&["kv", "get", "-t", "carts", "trolley"]).await;
    assert_eq!((&read["resolver_fault"]["kind"], &read["policy_fault"]), (&json!("trap"), &Value::Null));
    let triggers = "v".repeat(666);
    let put = cli.run(&["kv", "put", "-t", "carts", "other", &triggers]).await;
    let notes = text(&put.stderr);
    assert!(notes.contains("the consistency policy gave way to the native rule: lenient@"), "{notes}");
    let put = cli.json(&["kv", "put", "-t", "carts", "other", &triggers]).await;
    assert_eq!(put["policy_fault"]["kind"], json!("trap"));
    let bindings = cli.json(&["plugin", "bindings", "-t", "carts"]).await;
    let of: Vec<_> = bindings["bindings"].as_array().expect("bindings").iter().map(|it| &it["breaker_open"]).collect();
    assert_eq!(of, [&json!(false), &json!(false)]);
}

#[tokio::test]
async fn errors_say_why_whether_it_happened_and_what_to_do() {
    let dev = Dev::start().await;
    let cli = Cli::of(&dev);
    let refused = cli.run(&["kv", "put", "-t", "nobody", "key", "value"]).await;
    assert_eq!(refused.status.code(), Some(1));
    let said = text(&refused.stderr);
    for part in ["TENANT_NOT_FOUND", "nothing was changed", "witan tenant create"] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    let refused = cli.run(&["kv", "put", "-t", "nobody", "key", "value", "--output", "json"]).await;
    let refused: Value = serde_json::from_slice(&refused.stdout).expect("an object");
    assert_eq!(refused["error"]["reason"], json!("TENANT_NOT_FOUND"));
    assert_eq!(refused["error"]["outcome"], json!("not-applied"));

    let usage = cli.run(&["kv", "put", "-t", "demo", "key", "value", "--consistency", "most"]).await;
    assert_eq!(usage.status.code(), Some(2));
    let nobody = Cli { endpoint: "http://127.0.0.1:1".to_owned() };
    let unreachable = nobody.run(&["nodes", "list"]).await;
    assert_eq!(unreachable.status.code(), Some(1));
    assert!(text(&unreachable.stderr).contains("--endpoint"), "{}", text(&unreachable.stderr));
}

#[tokio::test]
async fn tenants_and_nodes_are_told() {
    let dev = Dev::start().await;
    let cli = Cli::of(&dev);
    cli.json(&["tenant", "create", "a"]).await;
    let kept = cli.json(&["tenant", "create", "a", "--if-missing"]).await;
    assert_eq!(kept["outcome"], json!("kept"));
    let version = kept["version"].to_string();
    let updated = cli.json(&["tenant", "update", "a", "--ordering", "clock", "--version", &version]).await;
    assert_eq!(updated["ordering"], json!("clock"));
    let late = cli.run(&["tenant", "update", "a", "--ordering", "quorum", "--version", &version]).await;
    assert!(text(&late.stderr).contains("VERSION_CONFLICT"), "{}", text(&late.stderr));
    let listed = cli.json(&["tenant", "list"]).await;
    assert_eq!(listed["tenants"][0]["tenant_id"], json!("a"));

    let nodes = cli.json(&["nodes", "list"]).await;
    assert_eq!(nodes["nodes"].as_array().map(Vec::len), Some(3));
    let plain = text(&cli.run(&["nodes", "list"]).await.stdout);
    assert_eq!(plain.lines().count(), 3, "a line per node, without a head, in a pipe: {plain}");
    assert!(plain.lines().all(|line| line.split('\t').count() == 9), "{plain}");
}

#[tokio::test]
async fn coordinators_and_nodes_tell_whether_they_serve() {
    let dev = Dev::start().await;
    let cli = Cli::of(&dev);
    assert_eq!(cli.json(&["health"]).await["serving"], json!(true));
    assert_eq!(cli.json(&["health", "--service", "witan.v1.CoordinatorService"]).await["serving"], json!(true));
    let unknown = cli.run(&["health", "--service", "no.such.Service"]).await;
    assert_eq!(unknown.status.code(), Some(1), "{}", text(&unknown.stdout));

    let nodes = cli.json(&["nodes", "list"]).await;
    let (host, port) = (nodes["nodes"][0]["host"].as_str().unwrap_or_default(), &nodes["nodes"][0]["port"]);
    let node = Cli { endpoint: format!("http://{host}:{port}") };
    assert_eq!(text(&node.run(&["health"]).await.stdout), "serving\n");

    // A port that was free a moment ago.
    let free =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    let nobody = Cli { endpoint: format!("http://{free}") }.run(&["health"]).await;
    assert_eq!(nobody.status.code(), Some(1), "{}", text(&nobody.stderr));
}

#[tokio::test]
async fn keys_are_listed_replicas_compared_and_tenants_deleted() {
    let dev = Dev::start().await;
    let cli = Cli::of(&dev);
    cli.json(&["tenant", "create", "demo", "--conflict-mode", "siblings"]).await;
    for (key, value) in [("a:1", "x"), ("a:2", "x"), ("a:2", "y"), ("b:1", "x"), ("gone", "x")] {
        cli.json(&["kv", "put", "-t", "demo", key, value, "--consistency", "all"]).await;
    }
    cli.json(&["kv", "delete", "-t", "demo", "gone", "--consistency", "all"]).await;
    let plain = text(&cli.run(&["kv", "list", "-t", "demo"]).await.stdout);
    let mut listed: Vec<&str> = plain.lines().collect();
    listed.sort_unstable();
    assert_eq!(listed, ["a:1", "a:2", "b:1"]);
    let first = cli.json(&["kv", "list", "-t", "demo", "--prefix", "a:", "--limit", "1"]).await;
    let token = first["next_page_token"].as_str().expect("a token");
    let rest = ["kv", "list", "-t", "demo", "--prefix", "a:", "--page-token", token];
    let rest = cli.json(&rest).await;
    let both = [&first["keys"], &rest["keys"]].map(|keys| keys.as_array().expect("keys").clone()).concat();
    let siblings: Vec<&Value> =
        both.iter().filter(|key| key["siblings"] == json!(true)).map(|key| &key["key"]).collect();
    assert_eq!((both.len(), siblings), (2, vec![&json!("a:2")]));

    let repaired = cli.json(&["repair", "--tenant", "demo"]).await;
    assert_eq!(
        (&repaired["complete"], &repaired["scanned"], &repaired["failed"]),
        (&json!(true), &json!(4), &json!(0))
    );
    let said = text(&cli.run(&["repair"]).await.stdout);
    assert!(said.starts_with("compared 4 records, repaired "), "{said}");
    let usage = cli.run(&["repair", "--from-token", "north"]).await;
    assert_eq!(usage.status.code(), Some(2));
    assert!(text(&usage.stderr).contains("hexadecimal"), "{}", text(&usage.stderr));

    let unsure = cli.run(&["tenant", "delete", "demo"]).await;
    assert!(!unsure.status.success() && text(&unsure.stderr).contains("--yes"), "{}", text(&unsure.stderr));
    let deleted = cli.json(&["tenant", "delete", "demo", "--yes"]).await;
    assert_eq!((&deleted["records_removed"], &deleted["complete"]), (&json!(12), &json!(true)));
    let gone = cli.run(&["kv", "list", "-t", "demo"]).await;
    assert!(text(&gone.stderr).contains("TENANT_NOT_FOUND"), "{}", text(&gone.stderr));
}

#[tokio::test]
async fn the_load_generator_measures_every_way() {
    let dev = Dev::start().await;
    let cli = Cli::of(&dev);
    let bench = ["bench", "--warm-up", "0", "--concurrency", "8", "--keys", "50", "--operations", "300"];
    for extra in [
        &["--mode", "unary", "--distribution", "zipf"][..],
        &["--mode", "session", "--threads", "2", "--preload"],
        &["--mode", "unary", "--rate", "2000"],
        &["--mode", "session", "--rate", "2000", "--value-size", "1KiB"],
        &["--mode", "session", "--tenant", "carts", "--conflict-mode", "siblings"],
    ] {
        let result = cli.json(&[&bench[..], extra].concat()).await;
        assert_eq!(result["operations"], json!(300), "{extra:?}: {result}");
        assert_eq!(result["failed"], json!(0), "{extra:?}: {result}");
        assert_ne!(result["write"]["p99_us"], json!(0), "{extra:?}: {result}");
        assert_ne!(result["read"]["count"], json!(0), "{extra:?}: {result}");
    }
}

#[tokio::test]
async fn shells_get_their_completions() {
    let cli = Cli { endpoint: "http://127.0.0.1:1".to_owned() };
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = cli.run(&["completions", shell]).await;
        assert!(script.status.success());
        assert!(text(&script.stdout).contains("witan"), "{shell}");
    }
}

#[tokio::test]
async fn a_key_is_one_record_whatever_is_in_it() {
    let dev = Dev::start().await;
    let (cli, api) = (Cli::of(&dev), dev.api());
    api.tenant("t", |_| {}).await;
    let keys = ["a\nb", r"a\nb", "tab\there", "plain"];
    for key in keys {
        api.write(write("t", key, "v")).await.expect("write");
    }
    let lines = |output: Output| -> BTreeSet<String> { text(&output.stdout).lines().map(str::to_owned).collect() };
    let listed = lines(cli.run(&["kv", "list", "-t", "t"]).await);
    assert_eq!(listed, BTreeSet::from([r"a\nb", r"a\\nb", r"tab\there", "plain"].map(str::to_owned)));
    for null in ["-0", "--null"] {
        let listed = cli.run(&["kv", "list", "-t", "t", null]).await;
        let listed: BTreeSet<String> = text(&listed.stdout).split_terminator('\0').map(str::to_owned).collect();
        assert_eq!(listed, BTreeSet::from(keys.map(str::to_owned)), "each as it is");
    }
    api.write(write("t", "a\0b", "v")).await.expect("write");
    let refused = cli.run(&["kv", "list", "-t", "t", "--null"]).await;
    assert!(!refused.status.success() && text(&refused.stderr).contains("--output json"), "{}", text(&refused.stderr));

    // Other sentences and tables hold names as well.
    let put = cli.run(&["kv", "put", "-t", "t", "two\nlines", "v"]).await;
    assert_eq!(text(&put.stdout).lines().count(), 1, "{}", text(&put.stdout));
    cli.json(&["token", "create", "--scope", "read", "--label", "x\ny\tz", "--tenant", "t"]).await;
    let tokens = cli.run(&["token", "list"]).await;
    let shown = text(&tokens.stdout);
    assert!(shown.lines().count() == 1 && shown.contains(r"x\ny\tz"), "{shown}");
}

#[tokio::test]
async fn a_terminal_is_not_commanded_by_a_key() {
    let dev = Dev::start().await;
    let api = dev.api();
    api.tenant("t", |_| {}).await;
    let evil = "a\u{1b}[2J\u{9b}31m\u{202e}b";
    api.write(write("t", evil, evil)).await.expect("write");
    for arguments in ["kv list -t t", "kv list -t t --output json", &format!("kv get -t t '{evil}'")] {
        // `script` runs a command on a terminal of its own, and shows what that received.
        let witan = Process::witan();
        let command = format!("{} {arguments} --timeout 60s", witan.get_program().display());
        let mut script = tokio::process::Command::new("script");
        script.args(["--quiet", "--return", "--command", &command, "/dev/null"]).stdin(Stdio::null());
        let shown =
            script.env("WITAN_ENDPOINT", format!("http://{}", dev.address())).output().await.expect("run script");
        let shown = text(&shown.stdout);
        assert!(shown.contains("[2J"), "{arguments}: {shown:?}");
        assert!(!shown.contains(['\u{1b}', '\u{9b}', '\u{202e}']), "{arguments}: {shown:?}");
    }
}

#[tokio::test]
async fn a_node_gets_a_zone_and_another_weight() {
    let dev = Dev::start().await;
    let (cli, api) = (Cli::of(&dev), dev.api());
    api.tenant("t", |_| {}).await;
    api.write(write("t", "k", "v")).await.expect("write");
    for (n, zone) in ["rack-1", "rack-2", "rack-1"].into_iter().enumerate() {
        let updated = cli.json(&["nodes", "update", &format!("node-{}", n + 1), "--zone", zone, "--wait"]).await;
        assert_eq!((&updated["type"], &updated["status"]), (&json!("zones"), &json!("completed")), "{updated}");
        assert_eq!((&updated["old_zone"], &updated["new_zone"]), (&json!(""), &json!(zone)), "{updated}");
    }
    let again = cli.json(&["nodes", "update", "node-3", "--zone", "rack-1"]).await;
    assert_eq!((&again["outcome"], &again["migration_id"]), (&json!("updated"), &json!("")), "{again}");
    assert!(again["message"].to_string().contains("nothing changes"), "{again}");
    let lighter = cli.json(&["nodes", "update", "node-3", "--virtual-nodes", "75", "--no-zone", "--wait"]).await;
    assert_eq!((&lighter["type"], &lighter["new_virtual_nodes"]), (&json!("zones"), &json!(75)), "{lighter}");
    let listed = cli.json(&["nodes", "list"]).await;
    let shown: Vec<_> = listed["nodes"].as_array().expect("nodes").iter().map(|node| &node["zone"]).collect();
    assert_eq!(shown, ["rack-1", "rack-2", ""], "{listed}");
    let plain = text(&cli.run(&["nodes", "list"]).await.stdout);
    assert!(plain.lines().next().is_some_and(|line| line.ends_with("\track-1")), "{plain}");
    let ring = cli.json(&["nodes", "ring"]).await;
    let lost: Vec<_> = ring["zones"].as_array().expect("zones").iter().map(|of| &of["lost_quorum"]).collect();
    assert_eq!(lost, [0.0, 0.0, 0.0], "three zones: {ring}");
    let ring = cli.json(&["nodes", "ring", "--replication-factor", "2"]).await;
    assert!(ring["zones"][0]["lost_quorum"].as_f64() > Some(0.3), "both of two are needed: {ring}");
    let picture = text(&cli.run(&["nodes", "ring"]).await.stdout);
    assert!(picture.contains("(none)\t1\t33.3 %\t0.0 %"), "{picture}");
    assert_eq!(api.read(crate::harness::read("t", "k")).await.expect("read").value, "v");
}

#[tokio::test]
async fn the_ring_is_shown_and_a_change_is_planned() {
    let dev = Dev::start().await;
    let (cli, api) = (Cli::of(&dev), dev.api());
    api.tenant("t", |_| {}).await;
    let ring = cli.json(&["nodes", "ring", "--replication-factor", "2"]).await;
    let shares: Vec<f64> =
        ring["nodes"].as_array().expect("nodes").iter().filter_map(|node| node["share"].as_f64()).collect();
    assert!(shares.len() == 3 && (shares.iter().sum::<f64>() - 1.0).abs() < 1e-6, "{ring}");
    let picture = text(&cli.run(&["nodes", "ring"]).await.stdout);
    assert_eq!(picture.matches(&"█".repeat(40)).count(), 3, "as many nodes as replicas: {picture}");

    // Exit code 1: something is in the way.
    let plan = cli.run(&["migration", "plan", "factor", "t", "5", "--output", "json"]).await;
    let shown: Value = serde_json::from_slice(&plan.stdout).expect("an object");
    assert_eq!(plan.status.code(), Some(1), "{shown}");
    assert!(shown["problems"].to_string().contains("5 replicas need 5 storage nodes"), "{shown}");
    let plan = text(&cli.run(&["migration", "plan", "add", "node-4", "127.0.0.1:9"]).await.stdout);
    assert!(plan.contains("node-4\t0\t0\t0.0 %") && plan.contains("of all copies would be made anew"), "{plan}");

    let plan = cli.json(&["migration", "plan", "update", "node-2", "--zone", "rack-1", "--virtual-nodes", "75"]).await;
    let zones = plan["zones"].as_array().expect("zones");
    let shown: Vec<_> =
        zones.iter().map(|of| (&of["zone"], &of["lost_quorum_before"], &of["replication_factor"])).collect();
    assert_eq!(shown, [(&json!(""), &json!(1.0), &json!(3)), (&json!("rack-1"), &json!(0.0), &json!(3))], "{plan}");
    assert!(
        zones.iter().all(|of| of["lost_quorum_after"] == of["lost_quorum_before"]),
        "two of three are in one: {plan}"
    );

    assert_eq!(cli.json(&["migration", "list"]).await, json!({ "migrations": [] }));
    assert_eq!(cli.json(&["migration", "leftovers"]).await, json!({ "leftovers": [] }));
    let given_up = cli.json(&["migration", "leftovers", "--drop", "--node", "node-3", "--tenant", "t", "--yes"]).await;
    assert_eq!(given_up, json!({ "node_id": "node-3", "tenant_id": "t", "dropped": 0 }));
    let unsure = cli.run(&["migration", "leftovers", "--drop", "--node", "node-3", "--tenant", "t"]).await;
    let said = text(&unsure.stderr);
    assert!(unsure.status.code() == Some(1) && said.contains("--drop --node node-3 --tenant t --yes"), "{said}");
    let of_all = cli.run(&["migration", "leftovers", "--drop", "--yes"]).await;
    assert!(of_all.status.code() == Some(2) && text(&of_all.stderr).contains("--node"), "{}", text(&of_all.stderr));
    for arguments in [["show", "m-7"], ["watch", "m-7"], ["cancel", "7"]] {
        let missing = cli.run(&[&["migration"], &arguments[..], &["--output", "json"]].concat()).await;
        let missing: Value = serde_json::from_slice(&missing.stdout).expect("an object");
        assert_eq!(missing["error"]["reason"], "MIGRATION_NOT_FOUND", "{arguments:?}: {missing}");
    }
    for (wrong, why) in [
        (&["node-2"][..], "--zone"),
        (&["node-2", "--zone", "a b"], "use at most 64 of a-z"),
        (&["node-2", "--zone", ""], "--no-zone"),
        (&["node-2", "--zone", "a", "--no-zone"], "cannot be used with"),
        (&["node-2", "--virtual-nodes", "0"], "1..=4096"),
    ] {
        let refused = cli.run(&[&["nodes", "update"], wrong].concat()).await;
        let said = text(&refused.stderr);
        assert!(refused.status.code() == Some(2) && said.contains(why), "{wrong:?}: {said}");
    }
    let alone = cli.run(&["nodes", "remove", "node-3", "--accept-loss"]).await;
    assert!(alone.status.code() == Some(2) && text(&alone.stderr).contains("--force"), "{}", text(&alone.stderr));
}
