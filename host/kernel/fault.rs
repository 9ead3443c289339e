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
    /// A coordinator goes on with contexts and reservations of before a restore.
    EraIgnored,
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
    /// Requests whose connection broke are reported as never sent.
    LostCalledUnsent,
    /// An answer is taken for that of the oldest request, whichever it belongs to.
    AnswersByTurn,
    /// A request that a node has answered with an error is never answered to the operation.
    ReplyForgotten,
    /// A node keeps what requests take of their lane's limit.
    PermitsKept,
    /// A read that shows a row which is not synced does not wait for the sync.
    ReadsNotGated,
    /// A merge that changes nothing does not wait for the sync of what it has found.
    MergesNotGated,
    /// A sync is taken to cover everything that was written before it ended.
    SyncCoversLater,
    /// What a failed sync covers is acknowledged.
    FailedSyncAnswered,
    /// What could not be written is acknowledged.
    FailedWriteAnswered,
    /// A replica whose disk is full counts as having stored the change.
    RefusalCounted,
    /// The requirement counts as met when the deadline passes.
    DeadlineCountsAsMet,
    /// A change that was sent and not answered in time is reported as not applied.
    LateCalledUnapplied,
    /// The level that a request names is ignored.
    LevelIgnored,
    /// A policy may go below the tenant's minimum level.
    MinimumIgnored,
    /// The deadline starts again with every round of an operation.
    DeadlineStartsAgain,
    /// A write is not ordered after what its context covers.
    ContextNotAbove,
    /// A deleted register's stamp is not reported.
    TombstoneHasNoStamp,
    /// A replica does not say which stamp a write was given before.
    StampNotRemembered,
    /// A stamp is above that of one replica.
    OneStampIsEnough,
    /// A stamp is not stored under the idempotency key.
    StampNotStored,
    /// A node counts deadlines from when requests arrive.
    LateAccepted,
    /// A node serves requests of an epoch below its fence.
    FenceIgnored,
    /// A node forgets its fences when it is started again.
    FenceVolatile,
    /// A change of a tenant is answered although a node that could serve the old settings has no fence.
    FenceNotAwaited,
    /// A change of what plugins decide leaves no fence owed.
    BindingUnfenced,
    /// A coordinator vouches for bindings that it has not put in force yet.
    BindingVouchedEarly,
    /// A node that gets rows anew drops nothing of what it had of them before, and says that it has.
    EnterDropsNothing,
    /// A node that is asked late to drop rows which it gets anew drops them, although a later change has begun.
    StaleEnterDrops,
    /// A node drops rows that it has lost although it has got them anew since.
    LeaveIgnoresEntry,
    /// Requests carry the newest revision that the coordinator has heard of, not the one that it had followed when they began.
    EpochOfLater,
    /// A level is counted over the replicas of both placements together.
    MoveCountsUnion,
    /// In the last step of a move, what is stored is asked of the coming placement alone.
    MoveReadsNewOnly,
    /// In the last step of a move, what is stored is asked of the present placement alone.
    MoveReadsOldOnly,
    /// In the last step of a move, a change counts in the coming placement alone.
    MoveWritesNewOnly,
    /// In the last step of a move, a change counts in the present placement alone.
    MoveWritesOldOnly,
    /// The coming placement is in force before its last step.
    MoveNewInForceEarly,
    /// A node's digests do not follow what its shards write.
    DigestNotUpdated,
    /// Records are read that merges cannot bear.
    UncanonicalAccepted,
    /// A put drops nothing.
    PutForgetsContext,
    /// A put drops what its context does not cover, too.
    PutDropsAll,
    /// A change is acknowledged once it is minted.
    MintAloneSuffices,
    /// A writer's context covers all that the record holds.
    WriterClaimsRecord,
    /// A resolver is shown half of what a collapse replaces.
    CollapseShowsHalf,
    /// A stale replica counts as repaired before it has stored anything.
    StaleCountedAsRepaired,
    /// A repair sends one of the answers instead of their merge.
    RepairSendsFirst,
    /// A replica without the record is not repaired.
    AbsentNotStale,
    /// A repair keeps its permit.
    RepairPermitLeaked,
    /// A read returns one of the answers instead of their merge.
    FirstAnswerReturned,
    /// A change in doubt gives up its reservation.
    DoubtReleased,
    /// Whoever takes over a reservation takes itself for the first.
    TakeoverForgotten,
    /// A repetition is not reported as a duplicate.
    DuplicateCalledNew,
    /// An idempotency key is accepted for another request.
    ConflictAccepted,
    /// Every tenant goes on without the idempotency store.
    OutageIgnored,
    /// A sweep leaves out replicas that have no record.
    AbsentNotSwept,
    /// A sweep sends what one replica holds instead of the merge.
    SweepSendsFirst,
    /// A sweep leaves out the last replica of each key.
    LastReplicaNotSwept,
    /// A new store is believed although too few whole replicas were read.
    TooFewBelieved,
    /// A new store is believed although merges sent to it were not stored.
    UnrepairedBelieved,
    /// A pass of healing leaves out the last of its ranges.
    HealingSkipsRange,
    /// Healing does not notice that a node which was away is back.
    ReturnUnnoticed,
    /// A change that a replica has refused, or acknowledged too late, is not noted as missed by it.
    MissForgotten,
    /// What a node has missed counts as made good although the pass over it was incomplete.
    MissEndsEarly,
    /// Nobody makes good what a coordinator that has died knew of.
    MissUnclaimed,
    /// A placement change copies nothing once both placements are needed.
    MoveDeltaSkipped,
    /// A placement change takes a record for level that all replicas have in the same way but those that have nothing.
    CopyTakesNothingForLevel,
    /// A placement change is content with one source of each range.
    MoveCopyFromOne,
    /// A placement change is content with one replica that has a record.
    MoveCopyToOne,
    /// Nodes that get records keep what they had of them before.
    MovePrepareSkipped,
    /// A placement change reads its sources without fences.
    MoveUnfenced,
    /// A placement change does not copy what was deleted.
    MoveSkipsTombstones,
    /// What a node has lost is dropped before anybody has read it.
    LeftoverDroppedUnseen,
    /// A tenant's keys are where its coming partition hook places them as soon as records are copied there.
    HookInForceEarly,
    /// Keys are placed by the newest partition hook, whichever generation of rows they are looked for in.
    HookFromNewest,
    /// The last copy to another generation sends nothing of what the first one has missed.
    SwapDeltaSkipped,
    /// What is handed over to another generation keeps the token that it had.
    SwapLeftoverMisplaced,
    /// A deleted key's row is dropped as soon as a quorum of its replicas has the tombstone.
    CollectByQuorum,
    /// A deleted key's row is dropped however young its tombstone is.
    CollectWithoutGrace,
    /// A node that is asked to drop a row drops it whatever it has become.
    CollectUnconditional,
    /// A deleted key's row is dropped without a second look at its replicas.
    CollectAskedOnce,
    /// A placement change copies records before those are fenced who do not know of it.
    CollectDuringMove,
    /// Deleted keys' rows are dropped although a node has older ones to hand over.
    CollectWithLeftovers,
    /// The requests by which a deleted key's rows are dropped pass every fence.
    CollectWithoutEpoch,
    /// Routine sweeps send old tombstones to replicas that have nothing.
    TombstonesBounce,
    /// A node whose store has failed does not say so.
    FailureUnreported,
    /// A node whose store has failed is asked as if it were well.
    FailedAskedFirst,
    /// A repetition of which nobody can say whether it was applied is reported as one that too few replicas have answered.
    ForgottenCalledShort,
    /// A failure reports one answer less than there were.
    AnswersMiscounted,
    /// An operation that cannot succeed any more does not wait for the answers of replicas that are well.
    OthersUnheard,
    /// A superseded event supersedes no other event of its write, unless the write is known by its name.
    EventsGoAlone,
}

impl Fault {
    /// Every fault: the simulation has to find each of them, apart from some that the kernel's tests find (tests/sim/hot.rs).
    pub const ALL: [Self; 124] = [
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
        Self::EraIgnored,
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
        Self::LostCalledUnsent,
        Self::AnswersByTurn,
        Self::ReplyForgotten,
        Self::PermitsKept,
        Self::ReadsNotGated,
        Self::MergesNotGated,
        Self::SyncCoversLater,
        Self::FailedSyncAnswered,
        Self::FailedWriteAnswered,
        Self::RefusalCounted,
        Self::DeadlineCountsAsMet,
        Self::LateCalledUnapplied,
        Self::LevelIgnored,
        Self::MinimumIgnored,
        Self::DeadlineStartsAgain,
        Self::ContextNotAbove,
        Self::TombstoneHasNoStamp,
        Self::StampNotRemembered,
        Self::OneStampIsEnough,
        Self::StampNotStored,
        Self::LateAccepted,
        Self::FenceIgnored,
        Self::FenceVolatile,
        Self::FenceNotAwaited,
        Self::BindingUnfenced,
        Self::BindingVouchedEarly,
        Self::EnterDropsNothing,
        Self::StaleEnterDrops,
        Self::LeaveIgnoresEntry,
        Self::EpochOfLater,
        Self::MoveCountsUnion,
        Self::MoveReadsNewOnly,
        Self::MoveReadsOldOnly,
        Self::MoveWritesNewOnly,
        Self::MoveWritesOldOnly,
        Self::MoveNewInForceEarly,
        Self::DigestNotUpdated,
        Self::UncanonicalAccepted,
        Self::PutForgetsContext,
        Self::PutDropsAll,
        Self::MintAloneSuffices,
        Self::WriterClaimsRecord,
        Self::CollapseShowsHalf,
        Self::StaleCountedAsRepaired,
        Self::RepairSendsFirst,
        Self::AbsentNotStale,
        Self::RepairPermitLeaked,
        Self::FirstAnswerReturned,
        Self::DoubtReleased,
        Self::TakeoverForgotten,
        Self::DuplicateCalledNew,
        Self::ConflictAccepted,
        Self::OutageIgnored,
        Self::AbsentNotSwept,
        Self::SweepSendsFirst,
        Self::LastReplicaNotSwept,
        Self::TooFewBelieved,
        Self::UnrepairedBelieved,
        Self::HealingSkipsRange,
        Self::ReturnUnnoticed,
        Self::MissForgotten,
        Self::MissEndsEarly,
        Self::MissUnclaimed,
        Self::MoveDeltaSkipped,
        Self::CopyTakesNothingForLevel,
        Self::MoveCopyFromOne,
        Self::MoveCopyToOne,
        Self::MovePrepareSkipped,
        Self::MoveUnfenced,
        Self::MoveSkipsTombstones,
        Self::LeftoverDroppedUnseen,
        Self::HookInForceEarly,
        Self::HookFromNewest,
        Self::SwapDeltaSkipped,
        Self::SwapLeftoverMisplaced,
        Self::CollectByQuorum,
        Self::CollectWithoutGrace,
        Self::CollectUnconditional,
        Self::CollectAskedOnce,
        Self::CollectDuringMove,
        Self::CollectWithLeftovers,
        Self::CollectWithoutEpoch,
        Self::TombstonesBounce,
        Self::FailureUnreported,
        Self::FailedAskedFirst,
        Self::ForgottenCalledShort,
        Self::AnswersMiscounted,
        Self::OthersUnheard,
        Self::EventsGoAlone,
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
