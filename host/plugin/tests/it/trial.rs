//! A component that its author tries, without a coordinator.

use bytes::Bytes;
use witan_kernel::hook::{Hook, ResolverQuestion, Sibling, Verdict};
use witan_kernel::name::Key;
use witan_plugin::trial::{self, Trial, Unanswered};
use witan_plugin::{Digest, PluginError};

use crate::guest::Guest;
use crate::{COMPILER, ample, brief, question};

fn prepare(component: &[u8]) -> Result<Trial, PluginError> {
    Trial::prepare(component, &ample(), COMPILER.as_ref())
}

#[test]
fn it_says_what_it_is_and_answers_as_one_that_is_bound() {
    let component = Guest::policy("two", 2).build();
    let trial = prepare(&component).unwrap();
    assert_eq!((trial.name(), trial.version(), trial.hook()), ("two", "1.0.0", Hook::ConsistencyPolicy));
    assert_eq!(trial.digest(), Digest::of(&component));
    assert!(trial.is_deterministic() && trial.image_bytes() > 0);
    trial.probe(b"", &[]).unwrap();
    let mut plugin = trial.configured(b"").unwrap();
    assert_eq!(plugin.decide(&question(10)).unwrap().required, 2);
    assert_eq!((plugin.memory_bytes(), plugin.instances()), (65536, 1));
    let other = plugin.partition_key(b"key").unwrap_err();
    assert!(matches!(&other, Unanswered::Broken(why) if why.contains("another hook")), "{other}");
}

#[test]
fn a_fault_costs_an_instance_and_not_the_next_answer() {
    let trial = prepare(&Guest::policy("traps", 2).when_triggered("unreachable").build()).unwrap();
    let mut plugin = trial.configured(b"").unwrap();
    let trapped = plugin.decide(&question(666)).unwrap_err();
    assert!(matches!(&trapped, Unanswered::Broken(why) if why.starts_with("trapped")), "{trapped}");
    plugin.decide(&question(1)).unwrap();
    assert_eq!(plugin.instances(), 2);
}

#[test]
fn limits_are_enforced() {
    let endless = Guest::policy("endless", 2).when_triggered("(loop $again (br $again))").build();
    let trial = Trial::prepare(&endless, &brief(), COMPILER.as_ref()).unwrap();
    let late = trial.configured(b"").unwrap().decide(&question(666)).unwrap_err();
    assert_eq!(late, Unanswered::Broken("ran longer than 5 ms of CPU time".into()));
}

/// The resolver picks the first sibling if it has seven bytes, and otherwise keeps all. No value of the probe's own has seven.
#[test]
fn laws_are_tried_on_the_authors_values_too() {
    let resolver = Guest::resolver("sevens").with(|guest| {
        let sevens = "(i32.eq (i32.load offset=4 (local.get 2)) (i32.const 7))";
        // There is nothing at this address: zeros, which are the verdict that the first sibling wins.
        guest.answer = format!("(if (result i32) {sevens} (then (i32.const 700)) (else {}))", guest.answer);
    });
    let trial = prepare(&resolver.build()).unwrap();
    trial.probe(b"", &[]).unwrap();
    let refused = trial.probe(b"", &[Bytes::from_static(b"seven!!")]).unwrap_err().to_string();
    assert!(refused.contains("not commutative") && refused.contains("seven!!"), "{refused}");
    let sibling = |value: &'static str| Sibling { value: Bytes::from_static(value.as_bytes()), time: 1 };
    let asked = ResolverQuestion { key: Key::new("k").unwrap(), siblings: vec![sibling("seven!!"), sibling("x")] };
    assert_eq!(trial.configured(b"").unwrap().resolve(&asked), Ok(Verdict::Pick(0)));
}

#[test]
fn what_would_be_refused_is_refused_but_can_be_looked_at() {
    let asks_for_more = Guest::policy("large", 2).with(|guest| guest.pages = 1100).build();
    let it = trial::inspect(&asks_for_more).unwrap();
    assert_eq!((it.hook, it.memories, it.memory_bytes), (Some(Hook::ConsistencyPolicy), 1, 1100 << 16));
    assert_eq!((it.bytes, it.instances), (asks_for_more.len(), 1));
    assert!(it.exports.contains(&"witan:plugin/policy@0.1.0".to_owned()), "{it:?}");
    for refused in [trial::validate(&asks_for_more, &ample()).map(drop), prepare(&asks_for_more).map(drop)] {
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("72089600 bytes of memory"), "{refused}");
    }
    assert!(trial::inspect(b"\0asm\x01\0\0\0").unwrap_err().to_string().contains("core module"));
}
