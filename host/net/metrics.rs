//! Prometheus metrics of certificates and connections.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::certificate::now;
use crate::incoming::Traffic;
use crate::reload::Watched;

/// Registers metrics of certificates and of listeners' connections, with the name given for each listener as its label.
pub fn register(registry: &mut Registry, watched: Vec<Arc<dyn Watched>>, listeners: Vec<(&'static str, Traffic)>) {
    registry.register_collector(Box::new(Seen { watched, listeners }));
}

#[derive(Debug)]
struct Seen {
    watched: Vec<Arc<dyn Watched>>,
    listeners: Vec<(&'static str, Traffic)>,
}

impl Collector for Seen {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        self.expiries(&mut encoder)?;
        self.reloads(&mut encoder)?;
        self.connections(&mut encoder)
    }
}

impl Seen {
    fn expiries(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Seconds until a certificate expires; negative once it has expired";
        let mut family =
            encoder.encode_descriptor("witan_certificate_expiry_seconds", help, None, MetricType::Gauge)?;
        let now = now();
        let mut expiries: Vec<_> = self.watched.iter().flat_map(|watched| watched.expiries()).collect();
        // Two listeners may use the same certificate.
        expiries.sort_by(|a, b| a.file.cmp(&b.file));
        expiries.dedup_by(|a, b| a.file == b.file);
        for expiry in expiries {
            let label = [("file", expiry.file.display().to_string())];
            ConstGauge::new(expiry.not_after - now).encode(family.encode_family(&label)?)?;
        }
        Ok(())
    }

    fn reloads(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Reloads of certificates and secrets after their files changed, by result";
        let mut family = encoder.encode_descriptor("witan_certificate_reloads", help, None, MetricType::Counter)?;
        let sum = |a: (u64, u64), b: (u64, u64)| (a.0 + b.0, a.1 + b.1);
        let (ok, failed) = self.watched.iter().map(|watched| watched.reloads()).fold((0, 0), sum);
        for (result, count) in [("ok", ok), ("failed", failed)] {
            ConstCounter::new(count).encode(family.encode_family(&[("result", result)])?)?;
        }
        Ok(())
    }

    fn connections(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut family =
            encoder.encode_descriptor("witan_connections", "Open client connections", None, MetricType::Gauge)?;
        for (listener, traffic) in &self.listeners {
            let open = i64::try_from(traffic.open()).unwrap_or(i64::MAX);
            ConstGauge::new(open).encode(family.encode_family(&[("listener", *listener)])?)?;
        }
        let help = "Bytes that clients may send over HTTP/2 before anybody reads them: the windows of all connections";
        let mut family = encoder.encode_descriptor("witan_receive_window_bytes", help, None, MetricType::Gauge)?;
        for (listener, traffic) in &self.listeners {
            let bytes = i64::try_from(traffic.0.windows()).unwrap_or(i64::MAX);
            ConstGauge::new(bytes).encode(family.encode_family(&[("listener", *listener)])?)?;
        }
        let help = "Client connections that were accepted";
        let mut family = encoder.encode_descriptor("witan_connections_accepted", help, None, MetricType::Counter)?;
        for (listener, traffic) in &self.listeners {
            let accepted = traffic.0.counts.accepted.load(Ordering::Relaxed);
            ConstCounter::new(accepted).encode(family.encode_family(&[("listener", *listener)])?)?;
        }
        let help = "Client connections that were closed: too many, of one address, without a call, evicted to make room, a failed \
             handshake, nothing sent or read";
        let mut family = encoder.encode_descriptor("witan_connections_closed", help, None, MetricType::Counter)?;
        for (listener, traffic) in &self.listeners {
            let counts = &traffic.0.counts;
            let reasons: [(&str, &AtomicU64); 7] = [
                ("full", &counts.full),
                ("address", &counts.address),
                ("idle", &counts.idle),
                ("stalled", &counts.stalled),
                ("made_room", &counts.made_room),
                ("handshake", &counts.handshake),
                ("silent", &counts.silent),
            ];
            for (reason, count) in reasons {
                let label = [("listener", *listener), ("reason", reason)];
                ConstCounter::new(count.load(Ordering::Relaxed)).encode(family.encode_family(&label)?)?;
            }
        }
        let help = "Calls refused: too many under way, or answered and not taken, of their address or of all";
        let mut family = encoder.encode_descriptor("witan_calls_refused", help, None, MetricType::Counter)?;
        for (listener, traffic) in &self.listeners {
            let refused = traffic.0.counts.calls.load(Ordering::Relaxed);
            ConstCounter::new(refused).encode(family.encode_family(&[("listener", *listener)])?)?;
        }
        let help =
            "Streams refused that need no credential: too many on their connection, from their address, or in all";
        let mut family = encoder.encode_descriptor("witan_watches_refused", help, None, MetricType::Counter)?;
        for (listener, traffic) in &self.listeners {
            let refused = traffic.0.counts.watches.load(Ordering::Relaxed);
            ConstCounter::new(refused).encode(family.encode_family(&[("listener", *listener)])?)?;
        }
        Ok(())
    }
}
