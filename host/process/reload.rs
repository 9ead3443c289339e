//! Changes of the configuration while a coordinator serves: at SIGHUP, and when the file has changed.
//!
//! The file is polled by a [`Watch`].

use std::sync::atomic::AtomicU64;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinError;
use witan_net::Watch;

use super::config::{self, Live};
use super::signal::stopped;
use super::telemetry::LogFilter;
use crate::config::{Loaded, Problems, keys};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
}

/// How reading the configuration again has gone.
#[derive(Debug, Clone, Default)]
pub struct Reloads {
    counted: Family<Outcome, Counter>,
    last: Gauge<f64, AtomicU64>,
}

impl Reloads {
    /// Makes the counts visible, and what was built.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let help = "Times that the configuration was read again, by what came of it";
        registry.register("witan_config_reloads", help, self.counted.clone());
        let help = "Unix time at which the configuration in force was read";
        registry.register("witan_config_last_reload_success_timestamp_seconds", help, self.last.clone());
        let built = Info::new([("version", env!("CARGO_PKG_VERSION")), ("rust", env!("CARGO_PKG_RUST_VERSION"))]);
        registry.register("witan_build", "What this process was built from", built);
        for result in ["applied", "unchanged", "refused"] {
            drop(self.counted.get_or_create(&Outcome { result }));
        }
        self.read();
    }

    fn count(&self, result: &'static str) {
        self.counted.get_or_create(&Outcome { result }).inc();
        if result != "refused" {
            self.read();
        }
    }

    fn read(&self) {
        self.last.set(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()));
    }
}

/// What follows the configuration.
pub(crate) struct Following {
    /// What was read at the start: settings that need a restart keep these values.
    started: Loaded,
    /// What is in force.
    current: Loaded,
    live: watch::Sender<Live>,
    /// `None`: a flag or RUST_LOG has the last word on what is logged.
    log: Option<LogFilter>,
    reloads: Reloads,
    hangup: Signal,
}

impl Following {
    pub(crate) fn new(
        loaded: Loaded,
        live: watch::Sender<Live>,
        log: Option<LogFilter>,
        reloads: Reloads,
    ) -> anyhow::Result<Self> {
        let hangup = signal(SignalKind::hangup()).context("listen for SIGHUP")?;
        Ok(Self { started: loaded.clone(), current: loaded, live, log, reloads, hangup })
    }

    /// Follows until the signal to stop.
    pub(crate) async fn run(mut self, stop: watch::Receiver<bool>) {
        let stopped = stopped(stop);
        tokio::pin!(stopped);
        let mut watch = Watch::unread(self.started.inputs.file.clone());
        watch.skip().await;
        // What it says by now: a start may have taken a while.
        self.catch_up().await;
        loop {
            tokio::select! {
                hung_up = self.hangup.recv() => {
                    if hung_up.is_none() {
                        return;
                    }
                    watch.skip().await;
                    self.read_again().await;
                }
                _ = watch.changed() => self.read_again().await,
                () = &mut stopped => return,
            }
        }
    }

    /// Puts in force what has changed since the start. That nothing has is no news.
    async fn catch_up(&mut self) {
        match self.read().await {
            Ok(Ok(loaded)) if changed(&self.current, &loaded).is_empty() => {}
            read => self.take(read),
        }
    }

    async fn read_again(&mut self) {
        let read = self.read().await;
        self.take(read);
    }

    async fn read(&self) -> Result<Result<Loaded, Problems>, JoinError> {
        let inputs = self.started.inputs.clone();
        tokio::task::spawn_blocking(move || Loaded::read(inputs)).await
    }

    fn take(&mut self, read: Result<Result<Loaded, Problems>, JoinError>) {
        match read {
            Ok(Ok(loaded)) => self.put_in_force(loaded),
            Ok(Err(problems)) => {
                self.reloads.count("refused");
                tracing::error!("{problems}; the configuration in force stays");
            }
            Err(_) => self.reloads.count("refused"),
        }
    }

    fn put_in_force(&mut self, loaded: Loaded) {
        let changed = changed(&self.current, &loaded);
        if changed.is_empty() {
            tracing::info!("the configuration was read again and says the same");
            return self.reloads.count("unchanged");
        }
        let (applied, _): (Vec<&str>, Vec<&str>) = changed.iter().partition(|key| reloads(key));
        if let Some(log) = &self.log
            && let Err(error) = log.set(&loaded.settings.logging.level)
        {
            tracing::error!(%error, "what is logged stays as it was");
        }
        self.live.send_replace(config::live(&loaded.settings));
        let waiting: Vec<&str> =
            self::changed(&self.started, &loaded).into_iter().filter(|key| !reloads(key)).collect();
        tracing::info!(applied = applied.join(", "), "the configuration was read again");
        if !waiting.is_empty() {
            tracing::warn!(keys = waiting.join(", "), "changes of these keys need a restart");
        }
        self.reloads.count("applied");
        self.current = loaded;
    }
}

fn reloads(key: &str) -> bool {
    keys::find(key).is_some_and(|key| key.reloads)
}

/// Keys whose values differ.
fn changed(before: &Loaded, after: &Loaded) -> Vec<&'static str> {
    keys::KEYS.iter().map(|key| key.path).filter(|path| before.differs(after, path)).collect()
}
