//! The measurements of a load, as text and as JSON.

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::super::args::spelling;
use super::super::output::{Table, grouped, inline, micros};
use super::load::Load;
use super::measured::Measured;
use super::pace::{Rate, Until};

/// The percentiles that are shown, with their names.
const PERCENTILES: [(f64, &str); 4] = [(50.0, "p50"), (90.0, "p90"), (99.0, "p99"), (99.9, "p99.9")];

/// The settings on two lines.
pub fn settings(load: &Load) -> String {
    let pace = match load.rate {
        Rate::Closed => format!("closed loop with {} in flight", load.concurrency),
        Rate::Open(rate) => format!("open loop of {rate} operations/s with at most {} in flight", load.concurrency),
    };
    let until = match load.until {
        Until::Elapsed(elapsed) => format!("{:.1} s", elapsed.as_secs_f64()),
        Until::Operations(operations) => format!("{} operations", grouped(operations)),
    };
    let level = if load.consistency.is_empty() { "the tenant's" } else { &load.consistency };
    format!(
        "{}, {pace}, connections {}, threads {}, {until} after {:.1} s of warm-up\n\
         tenant {}, level {level}, {} keys ({}), {:.0} % reads, values of {} bytes, contexts {}, idempotency keys {}, seed {}",
        spelling(load.mode),
        load.connections.max(load.threads),
        load.threads,
        load.warm_up.as_secs_f64(),
        load.tenant,
        grouped(load.keys),
        spelling(load.distribution),
        load.read_share * 100.0,
        grouped(load.value_size as u64),
        if load.contexts { "kept" } else { "not kept" },
        if load.idempotency_keys { "shown" } else { "none" },
        load.seed,
    )
}

/// The result as text.
pub fn text(measured: &Measured) -> String {
    let mut table = Table::new(["OPERATION", "COUNT", "P50", "P90", "P99", "P99.9", "MAX"]);
    for (name, histogram) in [("write", &measured.writes), ("read", &measured.reads)] {
        if !histogram.is_empty() {
            let at = |percentile| micros(histogram.value_at_percentile(percentile));
            let cells = PERCENTILES.map(|(percentile, _)| at(percentile));
            let [p50, p90, p99, p999] = cells;
            table.row([name.to_owned(), grouped(histogram.len()), p50, p90, p99, p999, micros(histogram.max())]);
        }
    }
    let mut text = format!("{}\n{} operations/s", table.aligned(), rounded(measured.throughput()));
    if measured.errors.is_empty() {
        text.push_str(", no errors");
    } else {
        text.push_str(&format!(", {} errors:", grouped(measured.failed())));
        for (reason, count) in &measured.errors {
            text.push_str(&format!("\n  {:>10}  {}", grouped(*count), inline(reason)));
        }
    }
    text
}

/// Settings and result as JSON. Latencies are in microseconds.
pub fn json(load: &Load, measured: &Measured) -> Value {
    let rate = match load.rate {
        Rate::Closed => Value::Null,
        Rate::Open(rate) => json!(rate),
    };
    json!({
        "settings": {
            "mode": spelling(load.mode),
            "rate": rate,
            "concurrency": load.concurrency,
            "connections": load.connections.max(load.threads),
            "threads": load.threads,
            "warm_up_s": load.warm_up.as_secs_f64(),
            "tenant": load.tenant,
            "consistency": load.consistency,
            "keys": load.keys,
            "distribution": spelling(load.distribution),
            "read_share": load.read_share,
            "value_size": load.value_size,
            "contexts": load.contexts,
            "idempotency_keys": load.idempotency_keys,
            "seed": load.seed,
        },
        "elapsed_s": measured.elapsed.as_secs_f64(),
        "throughput": measured.throughput(),
        "operations": measured.writes.len() + measured.reads.len(),
        "failed": measured.failed(),
        "errors": measured.errors,
        "failure": latencies(&measured.failures),
        "write": latencies(&measured.writes),
        "read": latencies(&measured.reads),
    })
}

fn latencies(histogram: &Histogram<u64>) -> Value {
    let mut value = json!({ "count": histogram.len(), "mean_us": histogram.mean(), "max_us": histogram.max() });
    if let Some(fields) = value.as_object_mut() {
        for (percentile, name) in PERCENTILES {
            fields.insert(format!("{name}_us"), json!(histogram.value_at_percentile(percentile)));
        }
    }
    value
}

fn rounded(number: f64) -> String {
    grouped(number.round() as u64)
}
