//! Rules of the protocol that the simulation breaks on purpose, to show that it detects it.
//!
//! A fault belongs to the thread that set it, and exists only in builds with debug assertions: release builds contain no trace of it,
//! and no configuration sets it.

/// A broken rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The coordinator mints dots instead of a replica.
    DotsMintedByCoordinator,
    /// A replica stores what it is sent instead of merging it.
    OverwriteInsteadOfMerge,
    /// A replica answers before its sync has returned.
    AcknowledgeBeforeSync,
    /// A replica does not look for the write id in `recent`.
    WriteIdForgotten,
    /// A register's write is stamped by the clock alone.
    StampRoundSkipped,
    /// A read stores the resolver's verdict as a new write.
    VerdictWrittenBack,
    /// A quorum is one answer too small.
    QuorumOffByOne,
    /// A wiped store comes back under its old id and counts its dots from the start.
    ActorReusedAfterWipe,
    /// A delete ignores what the client has seen.
    ContextIgnoredOnDelete,
    /// A replica that has no record is not counted as having answered a read.
    NotFoundNotCounted,
    /// A linearizable read does not wait for its repair.
    BlockingRepairSkipped,
    /// A retry that takes over draws a new stamp although one is stored.
    StoredStampIgnored,
    /// A change is acknowledged although its idempotency record could not be made.
    AcknowledgedUnrecorded,
    /// A Put that failed is always tried elsewhere as if it were new.
    RetryMintsAgain,
    /// A node is read from whatever store it has come back with.
    NewStoreBelieved,
    /// A node's new store goes on record as soon as it is met, although nothing has filled it.
    NewStoreRecorded,
    /// A store that nobody has admitted is written to, and its acknowledgements count.
    UnadmittedStoreCounted,
    /// The acknowledgements of a store that is still being filled count.
    FillingStoreCounted,
    /// A store that was replaced is used again when it comes back.
    RetiredStoreUsed,
    /// A store that shows a lower commit number than before is used.
    SetBackStoreUsed,
    /// A record goes on counting under the birth that it has, although the node was started anew.
    BirthOutlivesBoot,
    /// A repair puts a new store on record although a tenant with a replication factor that it did not know was created meanwhile.
    FactorsUnchecked,
    /// A store that lacks acknowledged data is opened as if it had all of it.
    DamageBelieved,
    /// A request's deadline counts from its turn, not from its arrival.
    DeadlineFromTurn,
    /// Every step of an idempotency record prolongs its life.
    ReservationProlonged,
    /// A write is repeated without asking about it, as the previous version did.
    RepeatedUnasked,
    /// A replica that is asked about a write does not pin its name.
    AskedWithoutPin,
    /// A coordinator does not pass on what replicas report of pinned writes.
    PinsUntold,
    /// A Put is answered with the record as it is stored, not with every name that it superseded.
    AnswerTrimmed,
    /// A replica does not remember up to when it has forgotten names.
    HorizonIgnored,
    /// A write's name is unpinned although one of its Puts may still arrive.
    UnpinnedEarly,
    /// A write that a replica has not heard of is remembered under the time of the write over it.
    NewestIgnored,
    /// A writer's context claims its own write's event only where it follows on what was seen.
    OwnDotLeftOut,
    /// A named write without a reservation is sent as if nobody could have sent it before.
    UnreservedSentAsFirst,
}

impl Fault {
    /// Every fault: the simulation has to find each of them, apart from some that the kernel's tests find (tests/sim/hot.rs).
    pub const ALL: [Self; 34] = [
        Self::DotsMintedByCoordinator,
        Self::OverwriteInsteadOfMerge,
        Self::AcknowledgeBeforeSync,
        Self::WriteIdForgotten,
        Self::StampRoundSkipped,
        Self::VerdictWrittenBack,
        Self::QuorumOffByOne,
        Self::ActorReusedAfterWipe,
        Self::ContextIgnoredOnDelete,
        Self::NotFoundNotCounted,
        Self::BlockingRepairSkipped,
        Self::StoredStampIgnored,
        Self::AcknowledgedUnrecorded,
        Self::RetryMintsAgain,
        Self::NewStoreBelieved,
        Self::NewStoreRecorded,
        Self::UnadmittedStoreCounted,
        Self::FillingStoreCounted,
        Self::RetiredStoreUsed,
        Self::SetBackStoreUsed,
        Self::BirthOutlivesBoot,
        Self::FactorsUnchecked,
        Self::DamageBelieved,
        Self::DeadlineFromTurn,
        Self::ReservationProlonged,
        Self::RepeatedUnasked,
        Self::AskedWithoutPin,
        Self::PinsUntold,
        Self::AnswerTrimmed,
        Self::HorizonIgnored,
        Self::UnpinnedEarly,
        Self::NewestIgnored,
        Self::OwnDotLeftOut,
        Self::UnreservedSentAsFirst,
    ];

    /// True when this thread runs with the fault.
    #[cfg(debug_assertions)]
    pub fn is_on(self) -> bool {
        ACTIVE.get() == Some(self)
    }

    /// Always false: this build has no faults.
    #[cfg(not(debug_assertions))]
    #[inline(always)]
    pub fn is_on(self) -> bool {
        false
    }
}

#[cfg(debug_assertions)]
thread_local! {
    static ACTIVE: std::cell::Cell<Option<Fault>> = const { std::cell::Cell::new(None) };
}

/// Sets the fault of this thread; `None`: none.
#[cfg(debug_assertions)]
pub fn set(fault: Option<Fault>) {
    ACTIVE.set(fault);
}

/// Most names that are not pinned in a stored `siblings` record: [`crate::limit::RECENT_ENTRIES`], unless a simulation has set another
/// number on this thread, so that hot keys need fewer writes.
#[cfg(debug_assertions)]
pub fn names_kept() -> usize {
    NAMES_KEPT.get()
}

/// Most names that are not pinned in a stored `siblings` record.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn names_kept() -> usize {
    crate::limit::RECENT_ENTRIES
}

#[cfg(debug_assertions)]
thread_local! {
    static NAMES_KEPT: std::cell::Cell<usize> = const { std::cell::Cell::new(crate::limit::RECENT_ENTRIES) };
}

/// Sets what [`names_kept`] returns on this thread.
#[cfg(debug_assertions)]
pub fn keep_names(most: usize) {
    NAMES_KEPT.set(most);
}
