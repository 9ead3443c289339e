//! What every plugin store must do.

use bytes::Bytes;
use witan_kernel::class::Class;
use witan_kernel::hook::Hook;
use witan_kernel::name::{NodeId, TenantId};
use witan_kernel::port::{
    Artifact, CandidateReport, Digest, HISTORY_ENTRIES, HISTORY_ENTRY_BYTES, HistoryEntry, PluginStore, PushBegun,
    PushOnRecord, PushState, REPORT_BYTES, REPORTS_KEPT_MS, RecordText, Saved, Slot, Source, StoreError,
    TENANT_COMPILATIONS, TENANT_COMPILATIONS_MS,
};

fn artifact(bytes: &Bytes, source: Source) -> Artifact {
    Artifact {
        digest: Digest::of(bytes),
        name: "set-union".into(),
        version: "1.0.0".into(),
        hook: Hook::ConflictResolver,
        deterministic: true,
        size: bytes.len() as u64,
        owner: None,
        staged_at_ms: 5,
        source,
        signed_by: None,
        class: witan_kernel::class::Class::Standard,
        class_reason: String::new(),
    }
}

fn slot(tenant: Option<&str>) -> Slot {
    Slot { tenant: tenant.map(|id| TenantId::new(id).expect("valid")), hook: Hook::ConflictResolver }
}

/// Removes a slot's binding.
fn remove(store: &dyn PluginStore, slot: &Slot) -> Result<(), StoreError> {
    store.save(slot, Saved { record: None, puts_in_force: None, entry: None })
}

/// The whole contract, on an empty store that two plugin hosts share.
pub fn all(one: &dyn PluginStore, other: &dyn PluginStore) {
    assert!(one.is_shared() && other.is_shared());
    components(one, other);
    bindings(one, other);
    histories(one, other);
    reports(one, other);
    preparations(one, other);
    owners(one, other);
    classes(one, other);
    pushes(one, other);
}

fn components(one: &dyn PluginStore, other: &dyn PluginStore) {
    assert_eq!(one.components(), Ok(Vec::new()));
    let (first, second) = (Bytes::from_static(b"first"), Bytes::from_static(b"second"));
    let uploaded = artifact(&first, Source::Upload);
    one.keep(&uploaded, &first).expect("stored");
    other.keep(&Artifact { version: "2.0.0".into(), ..uploaded.clone() }, &first).expect("stored already");
    let filed = artifact(&second, Source::File("set-union.wasm".into()));
    one.keep(&filed, &second).expect("stored");
    let mut listed = other.components().expect("components");
    listed.sort_by_key(|artifact| artifact.size);
    assert_eq!(listed, [uploaded.clone(), filed.clone()], "the first description is kept");
    assert_eq!(other.component(uploaded.digest), Ok(Some(first)));
    other.forget(None, filed.digest).expect("removed");
    other.forget(None, filed.digest).expect("nothing to remove is no error");
    assert_eq!(one.component(filed.digest), Ok(None));
}

fn classes(one: &dyn PluginStore, other: &dyn PluginStore) {
    let (tenant, next) = (TenantId::new("compiles").expect("valid"), TenantId::new("another").expect("valid"));
    assert_eq!(one.has_class(&tenant, Class::Standard), Ok(true));
    assert_eq!(one.has_class(&tenant, Class::Interpreted), Ok(false));
    for _ in 0..TENANT_COMPILATIONS {
        assert_eq!(one.count_compilation(&tenant), Ok(None));
    }
    let later = other.count_compilation(&tenant).expect("counted").expect("not now");
    assert!((1..=TENANT_COMPILATIONS_MS).contains(&later), "{later}");
    assert_eq!(other.count_compilation(&next), Ok(None));
}

fn pushes(one: &dyn PluginStore, other: &dyn PluginStore) {
    let bytes = Bytes::from_static(b"pushed");
    let (artifact, worker) = (artifact(&bytes, Source::Upload), NodeId::new("one").expect("valid"));
    let (digest, reason, state) = (artifact.digest, String::new(), PushState::Staged);
    let push = PushOnRecord { owner: None, digest, size: 6, state, reason, worker: worker.clone(), since_ms: 0 };
    let seen = |store: &dyn PluginStore| store.push(None, digest).expect("read").map(|push| push.state);
    assert_eq!(one.begin_push(push.clone()), Ok(PushBegun::Begun));
    assert!(matches!(other.begin_push(push.clone()), Ok(PushBegun::UnderWay(_))));
    assert_eq!(one.step_push(PushOnRecord { state: PushState::Compiling, ..push.clone() }), Ok(true));
    assert_eq!(seen(other), Some(PushState::Compiling));
    other.abandon_pushes(&worker).expect("abandoned");
    assert_eq!(seen(one), Some(PushState::Refused));
    assert_eq!(other.begin_push(push), Ok(PushBegun::Begun));
    one.keep(&artifact, &bytes).expect("stored");
    assert_eq!(seen(other), Some(PushState::Ready));
    one.forget(None, digest).expect("removed");
}

fn bindings(one: &dyn PluginStore, other: &dyn PluginStore) {
    let (own, default) = (slot(Some("cart")), slot(None));
    let digest = Digest::of(b"first");
    let record = |text: &str| format!("{text} {digest}");
    let missing = one.save(&own, Saved::of(record("missing"), Some(Digest::of(b"missing"))));
    assert!(matches!(missing, Err(StoreError::Missing(_))), "{missing:?}");
    one.save(&own, Saved::of(record("first"), Some(digest))).expect("stored");
    one.save(&default, Saved::of(record("default"), Some(digest))).expect("stored");
    let stored = one.bindings().expect("bindings");
    let shown: Vec<_> = stored.iter().map(|at| (at.slot.clone(), at.record.clone())).collect();
    assert_eq!(shown, [(default.clone(), record("default")), (own.clone(), record("first"))]);

    let unread = other.save(&own, Saved::of(record("late"), Some(digest)));
    assert!(matches!(unread, Err(StoreError::Conflict(_))), "{unread:?}");
    assert!(matches!(remove(other, &own), Err(StoreError::Conflict(_))), "it was not read either");
    other.bindings().expect("bindings");
    assert!(matches!(remove(other, &own), Err(StoreError::Conflict(_))), "a list does not count as reading one");
    assert_eq!(other.binding(&own).expect("a binding").map(|at| at.record), Some(record("first")));
    other.save(&own, Saved::of(record("second"), Some(digest))).expect("stored");
    let outdated = one.save(&own, Saved::of(record("late"), Some(digest)));
    assert!(matches!(outdated, Err(StoreError::Conflict(_))), "{outdated:?}");
    assert!(matches!(one.forget(None, digest), Err(StoreError::Refused(_))), "a binding needs it");

    remove(other, &own).expect("removed");
    assert_eq!(one.binding(&own), Ok(None));
    remove(one, &own).expect("nothing to remove is no error");
    one.save(&own, Saved::of(record("third"), Some(digest))).expect("stored");
    remove(one, &own).expect("removed");
    remove(one, &default).expect("removed");
    one.forget(None, digest).expect("no binding needs it");
}

fn owners(one: &dyn PluginStore, other: &dyn PluginStore) {
    let bytes = Bytes::from_static(b"third");
    let tenant = |id: &str| Some(TenantId::new(id).expect("valid"));
    let of = |owner: &str| Artifact { owner: tenant(owner), ..artifact(&bytes, Source::Upload) };
    let digest = Digest::of(&bytes);
    one.keep(&of("cart"), &bytes).expect("stored");
    other.keep(&of("shop"), &bytes).expect("another tenant does not notice");
    let operators = other.keep(&artifact(&bytes, Source::Upload), &bytes);
    assert!(matches!(operators, Err(StoreError::Refused(_))), "its name is a tenant's: {operators:?}");
    let signed = Artifact { signed_by: Some("release".into()), ..of("shop") };
    other.keep(&signed, &bytes).expect("it is signed now");
    other.keep(&of("shop"), &bytes).expect("and remains so");
    assert_eq!(one.components(), Ok(vec![of("cart"), signed]));

    let save = |tenant, digest| one.save(&slot(tenant), Saved::of(format!("record {digest}"), Some(digest)));
    for stranger in [None, Some("other")] {
        let missing = save(stranger, digest);
        assert!(matches!(missing, Err(StoreError::Missing(_))), "{stranger:?}: {missing:?}");
    }
    save(Some("cart"), digest).expect("its own");
    let needed = other.forget(tenant("cart").as_ref(), digest);
    assert!(matches!(needed, Err(StoreError::Refused(_))), "{needed:?}");
    other.forget(None, digest).expect("the operator has none");
    other.forget(tenant("shop").as_ref(), digest).expect("no binding of this tenant needs it");
    assert_eq!((one.components(), one.component(digest)), (Ok(vec![of("cart")]), Ok(Some(bytes))));
    remove(one, &slot(Some("cart"))).expect("unbound");
    one.forget(tenant("cart").as_ref(), digest).expect("removed");
    assert_eq!((one.components(), one.component(digest)), (Ok(Vec::new()), Ok(None)), "with the last owner");
}

fn histories(one: &dyn PluginStore, other: &dyn PluginStore) {
    let own = slot(Some("history"));
    assert_eq!(one.history(&own), Ok(Vec::new()));
    one.binding(&own).expect("none");
    let saved = |record: Option<&str>, entry: &str| Saved {
        record: record.map(|text| RecordText(text.to_owned())),
        puts_in_force: None,
        entry: Some(entry.to_owned()),
    };
    one.save(&own, saved(Some("first"), "bound")).expect("stored");
    assert!(matches!(other.save(&own, saved(Some("late"), "late")), Err(StoreError::Conflict(_))));
    let long = "x".repeat(HISTORY_ENTRY_BYTES + 1);
    assert!(matches!(one.save(&own, saved(Some("long"), &long)), Err(StoreError::Refused(_))));
    one.save(&own, saved(None, "unbound")).expect("stored");
    one.save(&own, saved(None, "nothing to remove")).expect("no change, and no entry");
    let texts = |history: Vec<HistoryEntry>| history.into_iter().map(|entry| entry.text).collect::<Vec<_>>();
    let history = other.history(&own).expect("a history");
    assert!(history[0].number > history[1].number);
    assert_eq!(texts(history), ["unbound", "bound"], "it outlives the binding; what was refused is not in it");
    for round in 0..HISTORY_ENTRIES {
        one.save(&own, saved(Some("again"), &format!("round {round}"))).expect("stored");
    }
    let history = texts(other.history(&own).expect("a history"));
    assert_eq!((history.len(), &*history[0]), (HISTORY_ENTRIES, &*format!("round {}", HISTORY_ENTRIES - 1)));
    assert_eq!(history.last().map(|text| &**text), Some("round 0"), "the oldest are forgotten");
    assert_eq!(one.history(&slot(None)), Ok(Vec::new()), "another slot's");
    remove(one, &own).expect("removed");
}

fn reports(one: &dyn PluginStore, other: &dyn PluginStore) {
    let day = REPORTS_KEPT_MS;
    let report = |coordinator: &str, number, at_ms, text: &str| CandidateReport {
        slot: slot(Some("reports")),
        number,
        coordinator: NodeId::new(coordinator).expect("valid"),
        at_ms,
        text: text.to_owned(),
    };
    let seen = |number, since_ms| {
        let found = one.reports(&slot(Some("reports")), number, since_ms).expect("reports");
        found.into_iter().map(|it| (it.coordinator.to_string(), it.at_ms, it.text)).collect::<Vec<_>>()
    };
    let shown = |coordinator: &str, at_ms, text: &str| (coordinator.to_owned(), at_ms, text.to_owned());
    for (coordinator, number, at_ms, text) in
        [("b", 7, 20, "b20"), ("a", 7, 30, "a30"), ("a", 7, 10, "a10"), ("a", 8, 10, "of another")]
    {
        other.report(report(coordinator, number, at_ms, text)).expect("kept");
    }
    other.report(report("a", 7, 30, "a30 again")).expect("replaced");
    assert_eq!(seen(7, 0), [shown("a", 10, "a10"), shown("a", 30, "a30 again"), shown("b", 20, "b20")]);
    assert_eq!(seen(7, 20), [shown("a", 30, "a30 again"), shown("b", 20, "b20")]);
    assert_eq!(seen(9, 0), []);
    assert_eq!(one.reports(&slot(None), 7, 0), Ok(Vec::new()), "another slot's");
    let long = "x".repeat(REPORT_BYTES + 1);
    assert!(matches!(one.report(report("a", 7, 40, &long)), Err(StoreError::Refused(_))));
    one.report(report("a", 7, day + 20, "later")).expect("kept");
    assert_eq!(seen(7, 0), [shown("a", 30, "a30 again"), shown("a", day + 20, "later"), shown("b", 20, "b20")]);
}

fn preparations(one: &dyn PluginStore, other: &dyn PluginStore) {
    let own = slot(Some("prepared"));
    let text = |text: &str| Some(RecordText(text.to_owned()));
    assert_eq!(one.prepared(&own), Ok(None));
    one.prepare(&own, None).expect("there is none");
    one.prepare(&own, text("first")).expect("kept");
    other.prepare(&own, text("second")).expect("replaced");
    assert_eq!(one.prepared(&own), Ok(text("second")));
    assert_eq!(one.prepared(&slot(None)), Ok(None), "another slot's");
    one.prepare(&own, None).expect("removed");
    assert_eq!(other.prepared(&own), Ok(None));
}
