//! The cost of one plugin call without a coordinator: the first-party plugins, warm.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use bytes::Bytes;
use serde_json::json;
use tempfile::TempDir;
use witan::cli::output::Table;
use witan_kernel::hook::{
    Asked, Hook, Hooks, Operation, Partition, Plugins, PolicyQuestion, ReplicaState, ResolverQuestion, Sibling,
};
use witan_kernel::name::{Key, NodeId, TenantId};
use witan_kernel::tenant::Level;
use witan_memory::MemoryPlugins;
use witan_plugin::history::Author;
use witan_plugin::signature::Signatures;
use witan_plugin::{BindRequest, Limits, OnFault, PluginHost, Reference, Settings};

use crate::Options;
use crate::report::Section;

/// Repetitions of a measurement, of which the shortest counts, since disturbances only lengthen it.
const REPETITIONS: usize = 7;
const CALLS: u32 = 100_000;
/// Resolvers are called on separate threads.
const RESOLUTIONS: u32 = 5_000;

/// What is measured, the resolver, and the value of the writer of this number.
type Resolver = (&'static str, &'static str, fn(u64) -> String);

/// Resolvers, each with three small values.
const RESOLVERS: [Resolver; 6] = [
    ("shopping-cart merges three carts", "shopping-cart", |n| format!(r#"{{"items":{{"milk":{n},"bread-{n}":1}}}}"#)),
    ("counter merges three counters", "counter", |n| format!(r#"{{"all":{n},"own-{n}":{{"up":{n},"down":1}}}}"#)),
    ("add-wins-set merges three sets", "add-wins-set", |n| {
        format!(r#"{{"elements":{{"milk":{{"a":1}},"bread-{n}":{{"w{n}":1}}}},"seen":{{"a":1,"w{n}":1}}}}"#)
    }),
    ("register-map merges three maps", "register-map", |n| {
        format!(r#"{{"email":{{"value":"ada@example.org","time":{n}}},"own-{n}":{{"value":[{n}],"time":1}}}}"#)
    }),
    ("newest-field picks one of three", "newest-field", |n| format!(r#"{{"name":"Ada","updated":{n}}}"#)),
    ("text-lines merges three texts", "text-lines", |n| format!("10.0.0.1\n10.0.0.{n}7\n")),
];

/// Measures every hook.
pub(crate) fn section(options: &Options) -> anyhow::Result<Section> {
    let plugins = options.policy.parent().unwrap_or(Path::new("."));
    if !plugins.join("hash-tag.wasm").exists() {
        let text =
            format!("calls: not measured: no plugins in {}; `cargo xtask plugins` builds them\n", plugins.display());
        return Ok(Section { json: json!({ "skipped": text.trim_end() }), text, bounds_hold: false });
    }
    let folder = TempDir::with_prefix("witan-bench-")?;
    let mut limits = Limits::default();
    for budget in limits.budgets_mut() {
        // A loop of calls uses more of a core than one tenant may.
        budget.share = 10_000;
    }
    let settings = Settings {
        data_dir: folder.path().join("data"),
        folder: None,
        limits,
        coordinator: NodeId::new("bench")?,
        compiler: env!("CARGO_BIN_EXE_witan").into(),
        signatures: Signatures::default(),
    };
    let host = PluginHost::start(settings, Arc::new(MemoryPlugins::default()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let tenant = TenantId::new("tenant")?;
    let mut results = vec![("hooks of a tenant, nothing bound", nanos(|| _ = black_box(host.hooks(&tenant))))];
    for (hook, name) in [
        (Hook::ConsistencyPolicy, "adaptive-latency"),
        (Hook::RoutingHook, "hash-tag"),
        (Hook::ConflictResolver, "shopping-cart"),
    ] {
        runtime.block_on(bind(&host, hook, &plugins.join(format!("{name}.wasm"))))?;
    }
    results.push(("hooks of a tenant, each bound", nanos(|| _ = black_box(host.hooks(&tenant)))));
    let hooks = host.hooks(&tenant);
    let question = question();
    answered(&hooks.policy(&question))?;
    let mut number = 0;
    results.push((
        "adaptive-latency decides",
        nanos(|| {
            number += 1;
            _ = black_box(hooks.policy(&PolicyQuestion { value_bytes: number, ..question }));
        }),
    ));
    results.push(("adaptive-latency has decided before", nanos(|| _ = black_box(hooks.policy(black_box(&question))))));
    let key = Key::new("{user1000}.following")?;
    let partition = hooks.partition_key(0, &key);
    anyhow::ensure!(matches!(partition, Partition::By { .. }), "a plugin does not answer: {partition:?}");
    results.push(("hash-tag finds a partition", nanos(|| _ = black_box(hooks.partition_key(0, black_box(&key))))));
    for (what, name, value) in RESOLVERS {
        runtime.block_on(bind(&host, Hook::ConflictResolver, &plugins.join(format!("{name}.wasm"))))?;
        results.push((what, runtime.block_on(resolve(host.hooks(&tenant).as_ref(), &key, value))?));
    }

    let mut table = Table::new(["ONE CALL", "NS"]);
    results.iter().for_each(|(what, nanos)| table.row([(*what).to_owned(), format!("{nanos:.0}")]));
    let json = results.iter().map(|(what, nanos)| ((*what).to_owned(), json!(nanos))).collect();
    let text = format!("calls: the best of {REPETITIONS} repetitions\n{}", table.aligned());
    Ok(Section { text, json: serde_json::Value::Object(json), bounds_hold: true })
}

/// Nanoseconds of one run.
fn nanos(mut run: impl FnMut()) -> f64 {
    let mut best = f64::MAX;
    for _ in 0..REPETITIONS {
        let began = Instant::now();
        (0..CALLS).for_each(|_| run());
        best = best.min(began.elapsed().as_nanos() as f64 / f64::from(CALLS));
    }
    best
}

async fn resolve(hooks: &dyn Hooks, key: &Key, value: fn(u64) -> String) -> anyhow::Result<f64> {
    let siblings: Vec<Sibling> = (1..=3).map(|n| Sibling { value: Bytes::from(value(n)), time: n }).collect();
    let began = Instant::now();
    for _ in 0..RESOLUTIONS {
        answered(&hooks.resolve(ResolverQuestion { key: key.clone(), siblings: siblings.clone() }).await)?;
    }
    Ok(began.elapsed().as_nanos() as f64 / f64::from(RESOLUTIONS))
}

fn question() -> PolicyQuestion<'static> {
    const WELL: ReplicaState = ReplicaState { reachable: true, latency_p50_us: 300, latency_p99_us: 900, in_flight: 1 };
    PolicyQuestion {
        operation: Operation::Write,
        level: Level::Quorum,
        minimum: Level::One,
        replication_factor: 3,
        deadline_ms: 1000,
        value_bytes: 256,
        replicas: &[WELL; 3],
        zones: &[],
        zone: None,
    }
}

fn answered<T: std::fmt::Debug>(asked: &Asked<T>) -> anyhow::Result<()> {
    anyhow::ensure!(matches!(asked, Asked::Answered { .. }), "a plugin does not answer: {asked:?}");
    Ok(())
}

async fn bind(host: &PluginHost, hook: Hook, component: &Path) -> anyhow::Result<()> {
    let bytes = std::fs::read(component).with_context(|| format!("read {}", component.display()))?;
    let digest = host.stage(Bytes::from(bytes), None).await?.digest;
    let (plugin, configuration) = (Reference::Digest(digest), Bytes::new());
    host.bind(BindRequest {
        tenant: None,
        hook,
        plugin,
        configuration,
        on_fault: OnFault::Native,
        author: Author::default(),
    })
    .await?;
    Ok(())
}
