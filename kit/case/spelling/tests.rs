//! Cases as people write them, and as they should not.

use super::*;

fn resolver(text: &str) -> Result<Case> {
    parse("case", Hook::ConflictResolver, text.as_bytes())
}

fn wrong(hook: Hook, text: &str) -> String {
    format!("{:#}", parse("case", hook, text.as_bytes()).unwrap_err())
}

#[test]
fn a_conflict_has_siblings_and_a_verdict() {
    let case = resolver(
        r#"{"about": "x", "key": "k", "siblings": [{"value": "a", "time": 3}, {"value": {"base64": "/wA="}}], "verdict": {"pick": 1}}"#,
    );
    let case = case.unwrap();
    let Expects::Verdict(question, expected) = &case.expects else { panic!("{case:?}") };
    assert_eq!(question.siblings[0], Sibling { value: Bytes::from_static(b"a"), time: 3 });
    assert_eq!(expected, &Expected::Answer(Outcome::Value(Bytes::from_static(b"\xff\0"))));
    assert_eq!(case.values().count(), 2);
    let kept = resolver(r#"{"siblings": [{"value": ""}], "verdict": "keep-all"}"#).unwrap();
    assert!(matches!(kept.expects, Expects::Verdict(_, Expected::Answer(Outcome::KeepAll))));
    let declined = resolver(r#"{"siblings": [{"value": ""}], "error": "invalid-input"}"#).unwrap();
    assert!(matches!(declined.expects, Expects::Verdict(_, Expected::Error("invalid-input"))));
}

#[test]
fn what_is_absent_of_a_policys_case_is_ordinary() {
    let text = r#"{
        "question": {"operation": "read", "level": "quorum", "replication_factor": 3},
        "answer": {"required": 1, "shortfall": {"accept": 1}}
    }"#;
    let case = parse("case", Hook::ConsistencyPolicy, text.as_bytes()).unwrap();
    let Expects::Decision(asked, Expected::Answer(decision)) = &case.expects else { panic!("{case:?}") };
    assert_eq!((asked.minimum, asked.deadline_ms, asked.replicas.len()), (Level::One, 1_000, 3));
    assert!(asked.replicas.iter().all(|replica| replica.reachable));
    let expected = Decision { required: Some(1), shortfall: Some(Shortfall::Accept(1)), ..Decision::default() };
    assert_eq!(decision, &expected);
}

#[test]
fn a_routing_case_is_about_a_partition_or_an_order() {
    let parse = |text: &str| parse("case", Hook::RoutingHook, text.as_bytes()).unwrap().expects;
    let partition = parse(r#"{"key": "a/b", "partition_key": "a"}"#);
    assert!(matches!(partition, Expects::Partition(_, Expected::Answer(key)) if key == "a"));
    let order = parse(
        r#"{"key": "a", "candidates": [{"node": "n1"}, {"node": "n2", "state": {"reachable": false}}], "prefer": [1]}"#,
    );
    let Expects::Order(_, replicas, Expected::Answer(prefer)) = order else { panic!("{order:?}") };
    assert!(!replicas[1].1.reachable);
    assert_eq!(prefer, [1]);
}

#[test]
fn a_refused_configuration_needs_nothing_else() {
    let case = resolver(r#"{"configuration": "x = 1", "refused": "x"}"#).unwrap();
    assert_eq!((case.configuration, case.expects), (Bytes::from_static(b"x = 1"), Expects::Refused("x".into())));
}

#[test]
fn mistakes_are_named_with_their_place() {
    use Hook::{ConflictResolver as R, ConsistencyPolicy as P, RoutingHook as H};
    for (hook, text, parts) in [
        (R, "", "EOF"),
        (R, "{}", "siblings is missing"),
        (R, "{} {}", "after the case"),
        (R, r#"{"siblings": [], "verdict": "keep-all"}"#, "siblings is empty"),
        (R, r#"{"siblings": [{"value": "a"}]}"#, "verdict is missing"),
        (R, r#"{"siblings": [{"value": "a"}], "verdict": {"pick": 1}}"#, "no sibling 1"),
        (R, r#"{"siblings": [{"value": "a"}], "verdict": "keep"}"#, "verdict"),
        (R, r#"{"siblings": [{"value": 7}], "verdict": "keep-all"}"#, "siblings[0].value: invalid type"),
        (R, r#"{"siblings": [{"value": {"base64": "%"}}], "verdict": "keep-all"}"#, "is not base64"),
        (R, r#"{"siblings": [{"value": {"hex": "00"}}], "verdict": "keep-all"}"#, "hex"),
        (R, r#"{"siblings": [{"value": "a", "tme": 1}], "verdict": "keep-all"}"#, "tme"),
        (R, r#"{"siblings": [{"value": "a"}], "verdict": "keep-all", "error": "internal"}"#, "one of them"),
        (R, r#"{"key": "", "siblings": [{"value": "a"}], "verdict": "keep-all"}"#, "key"),
        (R, r#"{"question": {}}"#, "question"),
        (P, "{}", "question is missing"),
        (
            P,
            r#"{"question": {"operation": "read", "level": "two", "replication_factor": 3}, "answer": {}}"#,
            "question.level",
        ),
        (P, r#"{"question": {"operation": "read", "level": "one", "replication_factor": 6}, "answer": {}}"#, "1 to 5"),
        (H, "{}", "key is missing"),
        (H, r#"{"key": "a", "prefer": [0]}"#, "candidates"),
        (H, r#"{"key": "a", "candidates": [{"node": ""}], "prefer": [0]}"#, "candidates[0].node"),
    ] {
        let said = wrong(hook, text);
        assert!(said.contains(parts), "{text}: {said}");
    }
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(!wrong(R, &deep).is_empty(), "nesting is bounded");
}
