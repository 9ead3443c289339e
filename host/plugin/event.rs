//! Events of plugins and bindings, for operators: the last few hundred, what put each binding in force, and a subscription to those that
//! follow.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::broadcast;
use witan_kernel::hook::Hook;
use witan_kernel::name::TenantId;
use witan_kernel::sync::lock;

use crate::digest::Digest;

/// Events that are kept, and events by which a watcher may lag: a few hundred bytes each. For each binding one more is kept, if it is
/// older: the one that put it in force.
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
    /// A resolver, asked the same question again, answered differently. Emitted at most once per window of the breaker.
    Undetermined,
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
    /// The watched folder has another file of a routing hook that is bound by name; the detail says what swaps it.
    NotFollowed,
    /// A version is tried beside the one in force; the detail says how.
    Tried,
    /// A candidate exceeds its bounds, as this coordinator sees it, which does not ask it any longer for now.
    CandidateTripped,
    /// A candidate exceeded its bounds and was taken back.
    TakenBack,
    /// A candidate was discarded.
    Discarded,
    /// A candidate was put in force.
    Promoted,
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
            Self::Undetermined => "undetermined",
            Self::BreakerOpened => "breaker_opened",
            Self::BreakerClosed => "breaker_closed",
            Self::RolledBack => "rolled_back",
            Self::Unbound => "unbound",
            Self::Removed => "removed",
            Self::NotFollowed => "not_followed",
            Self::Tried => "tried",
            Self::CandidateTripped => "candidate_tripped",
            Self::TakenBack => "taken_back",
            Self::Discarded => "discarded",
            Self::Promoted => "promoted",
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
    /// The binding's tenant, or the component's; `None` for the default binding and for components of the operator.
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

    pub(crate) fn owned_by(self, owner: Option<TenantId>) -> Self {
        Self { tenant: owner, ..self }
    }

    /// The binding that it is about, if it is about one.
    fn slot(&self) -> Option<(Option<TenantId>, Hook)> {
        Some((self.tenant.clone(), self.hook?))
    }

    fn puts_in_force(&self) -> bool {
        matches!(self.kind, EventKind::Activated | EventKind::RolledBack)
    }

    fn changes_binding(&self) -> bool {
        self.puts_in_force() || self.kind == EventKind::Unbound
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
    /// Of each binding, what put it in force, if that is no longer among `events`: uploads must not push it out. At most one for each
    /// binding.
    in_force: BTreeMap<(Option<TenantId>, Hook), Event>,
}

impl Recent {
    fn push(&mut self, event: Event) {
        if event.changes_binding()
            && let Some(slot) = event.slot()
        {
            self.in_force.remove(&slot);
        }
        self.events.push_back(event);
        if self.events.len() > KEPT
            && let Some(oldest) = self.events.pop_front()
        {
            self.keep_if_in_force(oldest);
        }
    }

    fn keep_if_in_force(&mut self, event: Event) {
        let Some(slot) = event.slot().filter(|_| event.puts_in_force()) else { return };
        let is_last = !self.events.iter().any(|later| later.changes_binding() && later.slot().as_ref() == Some(&slot));
        if is_last {
            self.in_force.insert(slot, event);
        }
    }

    /// All that are kept, in the order of their numbers.
    fn all(&self) -> Vec<Event> {
        let mut events: Vec<Event> = self.in_force.values().cloned().collect();
        events.sort_by_key(|event| event.sequence);
        events.extend(self.events.iter().cloned());
        events
    }
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
        recent.push(event.clone());
        // Sent under the lock, so that watchers see the events in sequence. Having no watcher is no error.
        let _ = self.sender.send(event);
    }

    /// The events that are kept, and a receiver of those that follow, without a gap between them.
    pub(crate) fn watch(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let recent = lock(&self.recent);
        (recent.all(), self.sender.subscribe())
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
        EventKind::Refused | EventKind::Faulted | EventKind::Undetermined | EventKind::BreakerOpened => {
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

    #[test]
    fn what_put_a_binding_in_force_is_kept_as_long_as_it_is() {
        let events = Events::default();
        let emit = |kind, tenant: &str| {
            events.emit(Event::new(kind, "").at(Some(TenantId::new(tenant).unwrap()), Hook::RoutingHook));
        };
        let uploads = || (0..KEPT).for_each(|_| events.emit(Event::new(EventKind::Staged, "")));
        let kept = || {
            let events = events.watch().0.into_iter().filter(|event| event.hook.is_some());
            events.map(|event| (event.sequence, event.kind)).collect::<Vec<_>>()
        };
        emit(EventKind::Activated, "a");
        emit(EventKind::Activated, "b");
        emit(EventKind::Faulted, "b");
        emit(EventKind::Activated, "c");
        emit(EventKind::Unbound, "c");
        uploads();
        assert_eq!(kept(), [(1, EventKind::Activated), (2, EventKind::Activated)]);
        emit(EventKind::Unbound, "a");
        emit(EventKind::RolledBack, "b");
        let rolled_back = 5 + KEPT as u64 + 2;
        assert_eq!(kept(), [(rolled_back - 1, EventKind::Unbound), (rolled_back, EventKind::RolledBack)]);
        uploads();
        uploads();
        assert_eq!(kept(), [(rolled_back, EventKind::RolledBack)]);
        assert_eq!(events.watch().0.len(), KEPT + 1);
    }
}
