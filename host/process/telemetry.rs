//! Logging and tracing: destinations and formats.

use std::fmt;
use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Context;
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider};
use tracing::Event;
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use super::lines::{LOST, Lines};
use crate::config::settings::{LogFormat, Telemetry};
use crate::grpc::origin::Sampling;
use witan_origin as origin;

/// Capacity of the queue of spans to be sent; further ones are dropped. The library's default, made explicit.
const WAITING_SPANS: usize = 2048;
/// Timeout of an export to the collector.
const COLLECTOR: Duration = Duration::from_secs(5);
/// Timeout of the last export, when the process ends.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// The log: its lines on their way out, and its filter.
#[derive(Debug, Clone)]
pub struct Log {
    /// Lines on their way to standard error.
    pub lines: Lines,
    /// Changes the filter.
    pub filter: LogFilter,
}

/// A handle that changes the log filter at run time.
#[derive(Debug, Clone)]
pub struct LogFilter(reload::Handle<EnvFilter, Registry>);

impl LogFilter {
    /// Replaces the filter.
    ///
    /// # Errors
    /// The reason why the filter cannot be parsed.
    pub fn set(&self, filter: &str) -> Result<(), FilterError> {
        let filter = EnvFilter::try_new(quiet_engine(filter))?;
        Ok(self.0.reload(filter)?)
    }
}

/// Why the log filter was not replaced.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// It cannot be parsed.
    #[error(transparent)]
    Malformed(#[from] tracing_subscriber::filter::ParseError),
    /// Nothing logs with the old one any more.
    #[error(transparent)]
    Gone(#[from] reload::Error),
}

/// Limits the storage engine to warnings: it logs every table it writes. Directives of the filter come later and take precedence.
pub(crate) fn quiet_engine(level: &str) -> String {
    format!("fjall=warn,lsm_tree=warn,{level}")
}

/// Starts logging to standard error, panics included. Logging never waits for whoever reads that.
///
/// # Errors
/// The reason why the filter cannot be parsed.
pub(crate) fn log(filter: &str, format: LogFormat) -> Result<Log, tracing_subscriber::filter::ParseError> {
    let to = Lines::to(std::io::stderr(), LOST.clone());
    let (filter, handle) = reload::Layer::new(EnvFilter::try_new(filter)?);
    let lines = tracing_subscriber::fmt::layer().with_writer(to.clone()).with_ansi(std::io::stderr().is_terminal());
    let lines = match format {
        LogFormat::Console => lines.map_event_format(|plain| Named { plain, json: false }).boxed(),
        LogFormat::Json => lines
            .fmt_fields(JsonFields::new())
            .map_event_format(|plain| Named { plain: plain.json().flatten_event(true), json: true })
            .boxed(),
    };
    tracing_subscriber::registry().with(filter).with(lines).init();
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
        let backtrace = std::backtrace::Backtrace::capture();
        tracing::error!(target: "witan::panic", thread, %backtrace, "a defect: {panic}; please report it");
    }));
    Ok(Log { lines: to, filter: LogFilter(handle) })
}

/// Formats log lines with the id of the request that they belong to.
struct Named<F> {
    plain: F,
    json: bool,
}

impl<S, N, F> FormatEvent<S, N> for Named<F>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let Some(origin) = origin::current() else { return self.plain.format_event(ctx, writer, event) };
        let mut line = String::new();
        self.plain.format_event(ctx, Writer::new(&mut line), event)?;
        match line.strip_prefix('{').filter(|_| self.json) {
            // No character of an id needs escaping.
            Some(rest) => write!(writer, "{{\"request_id\":\"{}\",{rest}", origin.id),
            None => writeln!(writer, "{} request_id={}", line.trim_end(), origin.id),
        }
    }
}

/// The exporter of traces to a collector.
pub struct Traces(Option<SdkTracerProvider>);

impl Traces {
    /// Starts exporting, if a collector is configured. While it is unavailable, spans are lost and nothing else is affected.
    pub(crate) fn start(telemetry: &Telemetry, node_id: &str) -> anyhow::Result<Self> {
        let Some(endpoint) = &telemetry.otlp_endpoint else { return Ok(Self(None)) };
        let exporter = opentelemetry_otlp::SpanExporter::builder().with_tonic().with_endpoint(endpoint);
        let exporter = exporter.with_timeout(COLLECTOR).build().context("telemetry.otlp_endpoint")?;
        let batches = BatchConfigBuilder::default().with_max_queue_size(WAITING_SPANS).build();
        let resource = Resource::builder_empty()
            .with_service_name(telemetry.service_name.clone())
            .with_attribute(opentelemetry::KeyValue::new("service.instance.id", node_id.to_owned()))
            .with_attribute(opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        let provider = SdkTracerProvider::builder()
            .with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(batches).build())
            // Whether a request is traced is decided at its start; one that is not traced has no span to sample.
            .with_sampler(Sampler::AlwaysOn)
            .with_resource(resource.build())
            .build();
        opentelemetry::global::set_tracer_provider(provider.clone());
        Ok(Self(Some(provider)))
    }

    /// Sends the remaining spans.
    pub(crate) async fn end(self) {
        if let Some(provider) = self.0 {
            // Shutting down blocks on the provider's own thread.
            let ended = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(LAST_SPANS));
            if let Ok(Err(error)) = ended.await {
                tracing::debug!(%error, "the last spans were not sent");
            }
        }
    }
}

/// Which calls are traced.
pub(crate) fn sampling(telemetry: &Telemetry) -> Sampling {
    Sampling { on: telemetry.otlp_endpoint.is_some(), ratio: telemetry.sample_ratio }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;
    use witan_origin::{Origin, RequestId, scope};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The lines logged within a request and outside of one.
    async fn logged(json: bool) -> Vec<String> {
        let lines = Lines::default();
        let to = lines.clone();
        let layer = tracing_subscriber::fmt::layer().with_writer(move || to.clone()).with_ansi(false);
        let layer: Box<dyn Layer<Registry> + Send + Sync> = match json {
            false => layer.map_event_format(|plain| Named { plain, json: false }).boxed(),
            true => layer
                .fmt_fields(JsonFields::new())
                .map_event_format(|plain| Named { plain: plain.json().flatten_event(true), json: true })
                .boxed(),
        };
        let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
        let origin = Origin::untraced(RequestId::of(Some(b"order-7")));
        scope(Some(origin), async { tracing::warn!(reason = "a \"quote\"", "within") }).await;
        tracing::warn!("outside");
        let written = lines.0.lock().unwrap().clone();
        String::from_utf8(written).unwrap().lines().map(str::to_owned).collect()
    }

    #[tokio::test]
    async fn lines_of_a_request_contain_its_id() {
        let console = logged(false).await;
        assert!(console[0].ends_with("request_id=order-7"), "{console:?}");
        assert!(!console[1].contains("request_id"), "{console:?}");
        let json = logged(true).await;
        let line: serde_json::Value = serde_json::from_str(&json[0]).unwrap();
        assert_eq!((&line["request_id"], &line["message"]), (&"order-7".into(), &"within".into()));
        assert!(!json[1].contains("request_id"), "{json:?}");
    }
}
