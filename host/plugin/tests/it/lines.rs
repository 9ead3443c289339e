//! The lines that plugins log, for those who may see their bindings.

use witan_kernel::hook::{Hook, PolicyQuestion};
use witan_plugin::PluginError;
use witan_plugin::lines::Severity;

use crate::guest::Guest;
use crate::{LONG, World, question, tenant};

const POLICY: Hook = Hook::ConsistencyPolicy;

/// Logs the first three bytes of its name as a warning, this often, when it is triggered.
fn logging(name: &str, lines: u32) -> Vec<u8> {
    let body = format!(
        "(local.set 0 (i32.const {lines}))
         (loop $again
           (call $log (i32.const 2) (i32.const 200) (i32.const 3))
           (br_if $again (local.tee 0 (i32.sub (local.get 0) (i32.const 1)))))"
    );
    let imports = r#"(import "witan:plugin/host@0.1.0" "log" (func $log (param i32 i32 i32)))"#;
    Guest::policy(name, 2).when_triggered(&body).with(|guest| guest.imports = imports.into()).build()
}

#[tokio::test]
async fn lines_of_all_versions_of_a_binding_are_kept_and_followed() {
    let world = World::new();
    let none = world.host.tail(Some(tenant("a")), POLICY);
    assert!(matches!(none, Err(PluginError::NotFound(_))), "{none:?}");
    world.put("a", POLICY, &logging("one", 1)).await.unwrap();
    let mut reader = world.host.tail(Some(tenant("a")), POLICY).unwrap();
    assert_eq!(reader.read().lines, []);
    world.hooks("a").policy(&question(666));
    let line = tokio::time::timeout(LONG, reader.follow()).await.unwrap().lines.remove(0);
    assert_eq!((&*line.text, line.severity, line.tenant, line.dropped), ("one", Severity::Warn, Some(tenant("a")), 0));
    assert!(line.by.starts_with("one@"), "{}", line.by);

    // A swap goes on where the version before it has stopped, for those who read already and for others.
    world.put("a", POLICY, &logging("two", 1)).await.unwrap();
    world.hooks("a").policy(&question(666));
    assert_eq!(reader.follow().await.lines[0].text, "two");
    let lines = world.host.tail(Some(tenant("a")), POLICY).unwrap().read().lines;
    assert_eq!(lines.iter().map(|line| line.text.as_str()).collect::<Vec<_>>(), ["one", "two"]);
    // What is bound for another tenant, or for all, is another binding.
    assert!(world.host.tail(Some(tenant("b")), POLICY).is_err() && world.host.tail(None, POLICY).is_err());
}

#[tokio::test]
async fn of_a_flood_it_is_said_how_many_lines_were_dropped() {
    let world = World::new();
    world.put("", POLICY, &logging("bad", 1000)).await.unwrap();
    let mut reader = world.host.tail(None, POLICY).unwrap();
    let (mut dropped, mut deadline_ms) = (0, 0);
    while dropped == 0 {
        // In another second, one of its lines is kept again, and knows of those before. No question is put twice: it would be remembered.
        deadline_ms += 1;
        world.hooks("a").policy(&PolicyQuestion { deadline_ms, ..question(666) });
        dropped = reader.read().lines.iter().map(|line| line.dropped).sum();
    }
    assert!(dropped >= 900, "{dropped}");
    let kept = world.host.tail(None, POLICY).unwrap().read().lines;
    assert!(kept.iter().all(|line| line.tenant == Some(tenant("a"))), "{kept:?}");
}
