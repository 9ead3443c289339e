//! The plugin platform of a coordinator: its host, and its metrics.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock, Weak};

use anyhow::Context;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tokio::runtime::Handle;
use witan_control::Cluster;
use witan_kernel::hook::{FaultKind, Hook};
use witan_kernel::name::NodeId;
use witan_kernel::port::Metadata;
use witan_plugin::metrics::Counts;
use witan_plugin::tally::{TenantCounts, TenantSeries};
use witan_plugin::{Compilations, PluginHost, Settings};
use witan_store::plugins::StoredPlugins;

use super::config::Config;

/// This coordinator, once it follows others: it knows whether changes are fenced.
pub(super) type Following = Arc<OnceLock<Weak<dyn Cluster>>>;

/// Starts the plugin host on the coordinator's folders. Plugins and bindings are in the metadata store.
pub(super) async fn start(
    config: &Config,
    metadata: Arc<dyn Metadata>,
    following: Following,
) -> anyhow::Result<PluginHost> {
    let settings = Settings {
        data_dir: config.data_dir.join("plugins"),
        folder: config.plugins.clone(),
        limits: config.plugin_limits.clone(),
        coordinator: NodeId::new(&config.node_id).context("--node-id")?,
        compiler: this_program(),
        signatures: config.signatures.clone(),
    };
    let shared = config.shared.postgres.is_some();
    let fenced = move || following.get().and_then(Weak::upgrade).is_some_and(|cluster| cluster.fences());
    let store = StoredPlugins::new(metadata, shared, Handle::current()).with_fences(Box::new(fenced));
    let store = Arc::new(store);
    let started = tokio::task::spawn_blocking(move || PluginHost::start(settings, store));
    started.await?.context("start the plugin host")
}

/// This program, which compiles plugins in processes of its own. On Linux by a name that means the very file that is running, even if
/// another version has been installed over it since. Where it cannot be found, nothing can be compiled, and everything else goes on.
pub fn this_program() -> PathBuf {
    let running = PathBuf::from("/proc/self/exe");
    if running.exists() { running } else { std::env::current_exe().unwrap_or(running) }
}

/// Makes the host's counts visible.
pub(super) fn register(host: &PluginHost, registry: &mut Registry) {
    registry.register_collector(Box::new(Counted(host.clone())));
}

/// Picks one number.
type Read = fn(&Counts) -> u64;

#[derive(Debug)]
struct Counted(PluginHost);

impl Collector for Counted {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let counts = self.0.counts();
        let metrics: [(&str, &str, Read); 8] = [
            ("witan_plugin_calls", "Questions put to plugins", |c| c.calls),
            ("witan_plugin_remembered", "Questions not put: equal ones had been answered", |c| c.remembered),
            ("witan_plugin_faults", "Questions on which plugins failed", |c| c.faults),
            ("witan_plugin_refused", "Questions not put: open breaker, full queue, share used up", |c| c.refused),
            ("witan_plugin_swaps", "Versions put in force", |c| c.swaps),
            ("witan_plugin_candidates_taken_back", "Candidates taken back by this coordinator", |c| c.taken_back),
            ("witan_plugin_repeated", "Questions put to another instance as well, to compare", |c| c.repeated),
            ("witan_plugin_nanoseconds", "Time that calls took", |c| c.nanos),
        ];
        for (name, help, read) in metrics {
            let kind = prometheus_client::metrics::MetricType::Counter;
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for (hook, counts) in &counts {
                let label = [("hook", hook.as_str())];
                ConstCounter::new(read(counts)).encode(family.encode_family(&label)?)?;
            }
        }
        encode_candidates(&self.0.candidates(), &mut encoder)?;
        encode_unanswered(&counts, &mut encoder)?;
        encode_breakers(&self.0.open_breakers(), &mut encoder)?;
        encode_tenants(&self.0.tenant_counts(), &mut encoder)?;
        encode_compilations(&self.0.compilations(), &mut encoder)?;
        let (name, help) =
            ("witan_plugin_warm_bytes", "Bytes of the instances of plugins that wait for the next question");
        encode_bytes(name, help, self.0.warm_bytes(), &mut encoder)
    }
}

fn encode_candidates(candidates: &[(Hook, u64)], encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
    let kind = prometheus_client::metrics::MetricType::Gauge;
    let help = "Versions of plugins that are tried beside the one in force";
    let mut family = encoder.encode_descriptor("witan_plugin_candidates", help, None, kind)?;
    for (hook, count) in candidates {
        let tried = ConstGauge::new(i64::try_from(*count).unwrap_or(i64::MAX));
        tried.encode(family.encode_family(&[("hook", hook.as_str())])?)?;
    }
    Ok(())
}

fn encode_unanswered(counts: &[(Hook, Counts)], encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
    let help = "Questions that got no answer, by why; undetermined: another answer when the question was repeated";
    let kind = prometheus_client::metrics::MetricType::Counter;
    let mut family = encoder.encode_descriptor("witan_plugin_unanswered", help, None, kind)?;
    for (hook, counts) in counts {
        for kind in FaultKind::ALL {
            let labels = [("hook", hook.as_str()), ("kind", kind.as_str())];
            ConstCounter::new(counts.unanswered[kind as usize]).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn encode_breakers(open: &[(Hook, usize)], encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
    let help = "Tenants whose breaker of a plugin is open";
    let kind = prometheus_client::metrics::MetricType::Gauge;
    let mut family = encoder.encode_descriptor("witan_plugin_breakers_open", help, None, kind)?;
    for (hook, open) in open {
        let open = ConstGauge::new(i64::try_from(*open).unwrap_or(i64::MAX));
        open.encode(family.encode_family(&[("hook", hook.as_str())])?)?;
    }
    Ok(())
}

/// Picks one number of a tenant.
type ReadTenant = fn(&TenantCounts) -> u64;

fn encode_tenants(series: &[TenantSeries], encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
    let metrics: [(&str, &str, ReadTenant); 4] = [
        ("witan_plugin_tenant_calls", "Questions put to plugins, by the tenants that call most", |c| c.calls),
        ("witan_plugin_tenant_faults", "Questions on which plugins failed, by tenant", |c| c.faults),
        ("witan_plugin_tenant_refused", "Questions not put, by tenant", |c| c.refused),
        ("witan_plugin_tenant_nanoseconds", "Time that calls took, by tenant", |c| c.nanos),
    ];
    for (name, help, read) in metrics {
        let kind = prometheus_client::metrics::MetricType::Counter;
        let mut family = encoder.encode_descriptor(name, help, None, kind)?;
        for TenantSeries { hook, plugin, tenant, counts } in series {
            let labels = [("hook", hook.as_str()), ("plugin", plugin.as_str()), ("tenant", tenant.as_str())];
            ConstCounter::new(read(counts)).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn encode_compilations(counts: &Compilations, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
    let help =
        "Compilations of plugins: not_now says nothing about the plugin, say because no process could be started";
    let kind = prometheus_client::metrics::MetricType::Counter;
    let mut family = encoder.encode_descriptor("witan_plugin_compilations", help, None, kind)?;
    let outcomes = [("compiled", counts.compiled), ("refused", counts.refused), ("not_now", counts.not_now)];
    for (outcome, count) in outcomes {
        ConstCounter::new(count).encode(family.encode_family(&[("outcome", outcome)])?)?;
    }
    let (name, help) = ("witan_plugin_image_bytes", "Bytes of cached machine code of plugins on disk");
    encode_bytes(name, help, counts.image_bytes, encoder)
}

fn encode_bytes(
    name: &str,
    help: &str,
    bytes: u64,
    encoder: &mut DescriptorEncoder<'_>,
) -> Result<(), std::fmt::Error> {
    let bytes = ConstGauge::new(i64::try_from(bytes).unwrap_or(i64::MAX));
    bytes.encode(encoder.encode_descriptor(name, help, None, bytes.metric_type())?)
}
