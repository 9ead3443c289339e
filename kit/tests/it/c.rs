//! Projects in C, and what happens to those that are wrong.

use std::fs;

use witan_guests::componentize_denied;
use witan_kernel::hook::Hook;
use witan_kit::bindings::description;

use crate::Desk;

const RESOLVER: &str = "conflict-resolver";
const SOURCE: &str = "conflict-resolver/src/plugin.c";

#[test]
fn a_new_project_of_every_hook_builds_and_passes_its_cases() {
    let desk = Desk::new();
    for hook in [RESOLVER, "consistency-policy", "routing-hook"] {
        desk.project(hook, "c");
        desk.project_keeps_its_promises(hook);
    }
    let bytes = fs::metadata(desk.path("conflict-resolver/build/conflict-resolver.wasm")).expect("built").len();
    assert!(bytes < 64 << 10, "{bytes} bytes");
}

#[test]
fn the_bench_measures_every_case() {
    let desk = Desk::new();
    desk.project("routing-hook", "c");
    desk.run_in("routing-hook", &["build"]).succeeded();
    let measured = desk.run_in("routing-hook", &["bench", "--output", "json"]).succeeded();
    let measured: serde_json::Value = serde_json::from_str(&measured).expect("JSON");
    let cases = measured["cases"].as_array().expect("cases");
    assert_eq!(cases.len(), 4, "{measured}");
    for case in cases {
        let number = |name: &str| case[name].as_u64().expect("a number");
        assert!(number("calls") > 0 && number("p50_ns") > 0, "{case}");
        assert!(number("p50_ns") <= number("p99_ns") && number("p99_ns") <= number("max_ns"), "{case}");
    }
}

/// A resolver whose lines are not sorted depends on the order of the siblings: the case says so, and so do the laws.
#[test]
fn a_resolver_that_breaks_a_law_fails_its_test() {
    let desk = Desk::new();
    desk.project(RESOLVER, "c");
    desk.edit(SOURCE, "    qsort(lines, count, sizeof *lines, compare);\n", "");
    desk.run_in(RESOLVER, &["build"]).succeeded();
    let tested = desk.run_in(RESOLVER, &["test"]).failed(1);
    assert!(tested.contains("FAILED  union: expected"), "{tested}");
    assert!(tested.contains("FAILED  laws") && tested.contains("not commutative"), "{tested}");
    assert!(tested.contains("ok      no-text"), "{tested}");
    let checked = desk.run_in(RESOLVER, &["check"]).failed(1);
    assert!(checked.contains("refused:") && checked.contains("not commutative"), "{checked}");
}

#[test]
fn limits_are_those_of_a_coordinator() {
    let desk = Desk::new();
    desk.project(RESOLVER, "c");
    let began = "    bool text = true;\n";
    // The key of the probe is another one.
    let endless = "    if (question->key.len == 7) {\n        for (volatile int i = 0;; i = 0) {}\n    }\n";
    desk.edit(SOURCE, began, &format!("{began}{endless}"));
    fs::write(
        desk.path("conflict-resolver/cases/slow.json"),
        r#"{ "key": "slowest", "siblings": [{ "value": "a" }, { "value": "b" }], "verdict": "keep-all" }"#,
    )
    .expect("write a case");
    desk.run_in(RESOLVER, &["build"]).succeeded();
    let tested = desk.run_in(RESOLVER, &["test"]).failed(1);
    assert!(tested.contains("FAILED  slow:") && tested.contains("ran longer than 50 ms of CPU time"), "{tested}");
    assert!(tested.contains("ok      union") && tested.contains("ok      laws"), "{tested}");
}

#[test]
fn what_needs_an_operating_system_is_refused_with_what_it_imports() {
    let desk = Desk::new();
    desk.project(RESOLVER, "c");
    desk.edit(SOURCE, "#include <stdlib.h>\n", "#include <stdio.h>\n#include <stdlib.h>\n");
    desk.edit(SOURCE, "    bool text = true;\n", "    bool text = true;\n    puts(\"asked\");\n");
    let built = desk.run_in(RESOLVER, &["build"]).failed(1);
    assert!(built.contains("wasi_snapshot_preview1"), "{built}");
    assert!(built.contains("no operating system"), "{built}");
    assert!(!desk.path("conflict-resolver/build/conflict-resolver.wasm").exists());
}

/// What runtimes of other languages expect of an operating system is denied, and what they cannot start without is always the same.
#[test]
fn an_operating_system_that_denies_everything_is_the_same_every_time() {
    let desk = Desk::new();
    desk.project(RESOLVER, "c");
    let headers = "#include <stdio.h>\n#include <stdlib.h>\n#include <time.h>\nint getentropy(void *, size_t);\n";
    desk.edit(SOURCE, "#include <stdlib.h>\n", headers);
    let asks = "    unsigned char dice[3] = {0};
    bool text = time(NULL) == 1 && getentropy(dice, sizeof dice) == 0 && dice[0] == 0x5a && dice[2] == 0x5a;
    text = text && getenv(\"HOME\") == NULL && fopen(\"/etc/passwd\", \"r\") == NULL;\n";
    desk.edit(SOURCE, "    bool text = true;\n", asks);
    desk.run_in(RESOLVER, &["build"]).failed(1);
    let (module, component) = ("build/conflict-resolver.core.wasm", "build/conflict-resolver.wasm");
    let at = |file: &str| desk.path(RESOLVER).join(file);
    let world = description(Hook::ConflictResolver).expect("the world");
    componentize_denied(&at(module), &world, &at(component)).expect("a component");
    desk.run_in(RESOLVER, &["test"]).succeeded();
    let checked = desk.run_in(RESOLVER, &["check"]).succeeded();
    assert!(checked.contains("witan:plugin/types@0.1.0") && !checked.contains("wasi"), "{checked}");
}

#[test]
fn a_mistake_in_the_source_is_the_compilers_to_report() {
    let desk = Desk::new();
    desk.project(RESOLVER, "c");
    desk.edit(SOURCE, "bool text = true;", "bool text = tru;");
    let built = desk.run_in(RESOLVER, &["build"]).failed(1);
    assert!(built.contains("plugin.c") && built.contains("'tru'"), "{built}");
}
