//! Events of plugins and bindings, for operators: the last few hundred, and a subscription to those that follow.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::broadcast;
use witan_kernel::hook::Hook;
use witan_kernel::name::TenantId;
use witan_kernel::sync::lock;

use crate::digest::Digest;

/// Events that are kept, and events by which a watcher may lag: a few hundred bytes each.
const KEPT: usize = 256;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// A component arrived, by upload or in the watched folder.
    Staged,
    /// A component, or a change of a binding, was refused; the detail says why. The version in force stays.
    Refused,
    /// A component was compiled.
    Compiled,
    /// A component can be bound.
    Ready,
    /// A version of a binding was put in force.
    Activated,
    /// The last request that used an earlier version of a binding has ended.
    Drained,
    /// A call failed. Emitted at most once per window of the breaker.
    Faulted,
    /// Too many calls failed: the previous version answers now, or the native rule.
    BreakerOpened,
    /// The plugin answers again.
    BreakerClosed,
    /// A binding went back to its previous version.
    RolledBack,
    /// A binding was removed.
    Unbound,
    /// A component was removed.
    Removed,
}

impl EventKind {
    /// The API's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Staged => "staged",
            Self::Refused => "refused",
            Self::Compiled => "compiled",
            Self::Ready => "ready",
            Self::Activated => "activated",
            Self::Drained => "drained",
            Self::Faulted => "faulted",
            Self::BreakerOpened => "breaker_opened",
            Self::BreakerClosed => "breaker_closed",
            Self::RolledBack => "rolled_back",
            Self::Unbound => "unbound",
            Self::Removed => "removed",
        }
    }
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Number of the event in this process, from 1.
    pub sequence: u64,
    /// When it happened: Unix time in milliseconds.
    pub at_ms: u64,
    /// What happened.
    pub kind: EventKind,
    /// The component, if known.
    pub digest: Option<Digest>,
    /// The plugin's `name@version`, or the file that it came from; may be empty.
    pub plugin: String,
    /// The binding's tenant; `None` for the default binding and for components.
    pub tenant: Option<TenantId>,
    /// The binding's hook, if known.
    pub hook: Option<Hook>,
    /// Details, for a person.
    pub detail: String,
}

impl Event {
    pub(crate) fn new(kind: EventKind, detail: impl Into<String>) -> Self {
        Self {
            sequence: 0,
            at_ms: 0,
            kind,
            digest: None,
            plugin: String::new(),
            tenant: None,
            hook: None,
            detail: detail.into(),
        }
    }

    pub(crate) fn of(mut self, digest: Digest, plugin: impl Into<String>) -> Self {
        (self.digest, self.plugin) = (Some(digest), plugin.into());
        self
    }

    pub(crate) fn at(mut self, tenant: Option<TenantId>, hook: Hook) -> Self {
        (self.tenant, self.hook) = (tenant, Some(hook));
        self
    }
}

/// The last events, and a channel for the next ones. A watcher that is too slow misses the oldest, and its receiver reports how many.
#[derive(Debug)]
pub(crate) struct Events {
    recent: Mutex<Recent>,
    sender: broadcast::Sender<Event>,
}

#[derive(Debug, Default)]
struct Recent {
    last: u64,
    events: VecDeque<Event>,
}

impl Default for Events {
    fn default() -> Self {
        Self { recent: Mutex::default(), sender: broadcast::channel(KEPT).0 }
    }
}

impl Events {
    pub(crate) fn emit(&self, mut event: Event) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        event.at_ms = now.as_millis() as u64;
        log(&event);
        let mut recent = lock(&self.recent);
        recent.last += 1;
        event.sequence = recent.last;
        if recent.events.len() == KEPT {
            recent.events.pop_front();
        }
        recent.events.push_back(event.clone());
        // Sent under the lock, so that watchers see the events in sequence. Having no watcher is no error.
        let _ = self.sender.send(event);
    }

    /// The events that are kept, and a receiver of those that follow, without a gap between them.
    pub(crate) fn watch(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let recent = lock(&self.recent);
        (recent.events.iter().cloned().collect(), self.sender.subscribe())
    }
}

/// Logs an event: a warning when the host acted on a failure, information about the life cycle, the rest for debugging.
fn log(event: &Event) {
    let kind = event.kind.as_str();
    let plugin = &*event.plugin;
    let tenant = event.tenant.as_ref().map_or("", TenantId::as_str);
    let hook = event.hook.map_or("", Hook::as_str);
    let detail = &*event.detail;
    match event.kind {
        EventKind::Refused | EventKind::Faulted | EventKind::BreakerOpened => {
            tracing::warn!(plugin, tenant, hook, detail, "plugin {kind}");
        }
        EventKind::Activated | EventKind::RolledBack | EventKind::BreakerClosed | EventKind::Unbound => {
            tracing::info!(plugin, tenant, hook, detail, "plugin {kind}");
        }
        _ => tracing::debug!(plugin, tenant, hook, detail, "plugin {kind}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_events_are_kept_and_the_next_ones_follow() {
        let events = Events::default();
        (0..KEPT + 10).for_each(|n| events.emit(Event::new(EventKind::Staged, n.to_string())));
        let (recent, mut next) = events.watch();
        assert_eq!(recent.len(), KEPT);
        assert_eq!(recent.last().unwrap().sequence, (KEPT + 10) as u64);
        events.emit(Event::new(EventKind::Ready, ""));
        assert_eq!(next.try_recv().unwrap().sequence, (KEPT + 11) as u64);
    }
}
