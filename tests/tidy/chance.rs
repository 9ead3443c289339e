//! Rules that keep a simulation the same each time: what it runs takes nothing from chance.
//!
//! `tokio::select!` draws which ready branch it takes, and a hash map draws its order. Neither can be seeded from outside.

use crate::Finding;
use crate::lex::Token;
use crate::rooms::{Kind, ROOMS, SIMULATION};
use crate::tree::Tree;

/// What the root of a room that the simulation runs says, so that `clippy` finds loops over hash maps.
const DENIED: [&str; 2] = ["disallowed_methods", "iter_over_hash_type"];

/// Looks, in the rooms that the simulation runs, for `select!` without `biased`, and for roots that let hash maps be walked.
pub fn check(tree: &Tree<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (at, source) in tree.sources.iter().enumerate() {
        let simulated =
            tree.room(at).map(|room| ROOMS[room]).filter(|room| room.name == "sim" || SIMULATION.contains(&room.name));
        let Some(room) = simulated else { continue };
        let tokens = &source.lexed.tokens;
        let drawn = tokens.windows(4).filter(|tokens| is_drawn(tokens));
        findings.extend(drawn.map(|tokens| {
            let message =
                "`select!` draws which branch it takes: begin with `biased;`, and order the branches".to_owned();
            tree.finding(at, tokens[0].line, message)
        }));
        let is_root = matches!(room.kind, Kind::Crate(_)) && source.path.strip_prefix(room.path) == Some("/lib.rs");
        if is_root && !DENIED.iter().all(|lint| denies(tokens, lint)) {
            let message = format!(
                "the simulation runs this room: `#![deny({})]`",
                DENIED.map(|lint| format!("clippy::{lint}")).join(", ")
            );
            findings.push(tree.finding(at, 1, message));
        }
    }
    findings
}

fn is_drawn(tokens: &[Token<'_>]) -> bool {
    let [name, mark, open, first] = tokens else { return false };
    name.is("select") && mark.is("!") && open.is("{") && !first.is("biased")
}

fn denies(tokens: &[Token<'_>], lint: &str) -> bool {
    let start = tokens.windows(4).position(|it| it[0].is("#") && it[1].is("!") && it[2].is("[") && it[3].is("deny"));
    start.is_some_and(|start| tokens[start..].iter().take_while(|token| !token.is("]")).any(|token| token.is(lint)))
}
