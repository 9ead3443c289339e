//! Medians, the machine, and the settings.

use serde_json::{Value, json};

use crate::Options;

/// A section's result.
pub(crate) struct Section {
    /// As text.
    pub(crate) text: String,
    /// As JSON.
    pub(crate) json: Value,
    /// Whether all of its bounds are met.
    pub(crate) bounds_hold: bool,
}

/// The median of some numbers; 0 if there are none.
pub(crate) fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len() / 2, sorted.len() % 2) {
        (_, _) if sorted.is_empty() => 0.0,
        (half, 0) => (sorted[half - 1] + sorted[half]) / 2.0,
        (half, _) => sorted[half],
    }
}

/// The mean of some numbers, and its standard error.
pub(crate) fn mean(numbers: &[f64]) -> (f64, f64) {
    let count = numbers.len().max(1) as f64;
    let mean = numbers.iter().sum::<f64>() / count;
    let variance = numbers.iter().map(|number| (number - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
    (mean, (variance / count).sqrt())
}

/// The machine.
pub(crate) fn machine() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let processors = read("/proc/cpuinfo");
    let model =
        processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
    json!({
        "processor": model.unwrap_or("unknown"),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "load_before": read("/proc/loadavg").split_whitespace().next().and_then(|load| load.parse::<f64>().ok()),
    })
}

/// All settings that change the result.
pub(crate) fn settings(options: &Options) -> Value {
    json!({
        "rounds": options.rounds,
        "duration_s": options.duration.as_secs_f64(),
        "warm_up_s": options.warm_up.as_secs_f64(),
        "in_flight": options.concurrency,
        "connections": options.connections,
        "value_size": options.value_size,
        "keys": options.keys,
        "distribution": "uniform",
        "read_share": options.read_share,
        "level": "quorum",
        "replicas": 3,
        "generator_threads": 1,
    })
}

/// Machine and settings as text.
pub(crate) fn head(options: &Options, machine: &Value) -> String {
    let busy = machine["load_before"].as_f64().is_some_and(|load| load > 0.5);
    let busy = if busy { "\nThe machine is busy with something else: these figures are not worth much." } else { "" };
    format!(
        "witan {}: three storage nodes, a coordinator and the load generator, all on this machine\n\
         machine:  {}\nsettings: {}{busy}\n",
        env!("CARGO_PKG_VERSION"),
        listed(machine),
        listed(&settings(options)),
    )
}

fn listed(value: &Value) -> String {
    let fields = value.as_object().into_iter().flatten();
    fields
        .map(|(name, value)| format!("{name} {}", value.as_str().map_or(value.to_string(), str::to_owned)))
        .collect::<Vec<_>>()
        .join(", ")
}
