//! Replays every corpus whose target is compiled in.

use std::path::Path;
use std::time::Duration;

use witan_fuzz::run::{Options, run};
use witan_fuzz::targets;

#[test]
fn no_input_of_a_corpus_breaks_a_rule() {
    let found = std::env::temp_dir().join(format!("witan-fuzz-corpora-{}", std::process::id()));
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let options = Options { time: Duration::ZERO, seed: 0, corpora, found: found.clone(), grow: false };
    for target in targets::all() {
        let done = run(&target, &options).unwrap_or_else(|failed| panic!("{}: {failed}", target.name));
        assert!(done.replayed > 5 && done.outcomes > 3, "{}: {done:?}", target.name);
    }
    std::fs::remove_dir_all(found).unwrap();
}
