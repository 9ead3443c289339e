//! Rules about what a room offers: its errors are types, its constants say where their numbers come from.

use crate::Finding;
use crate::lex::{Kind, Token};
use crate::rooms::{self, ROOMS};
use crate::source::{Source, matching, signature_end, visibility};
use crate::tree::Tree;

/// Characters of a reason at least: shorter ones only repeat the name.
const REASON: usize = 20;

/// Looks for functions that other rooms can call and that fail with a `String`: callers cannot tell failures apart.
pub fn strings_as_errors(tree: &Tree<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (at, source) in tree.sources.iter().enumerate() {
        let tokens = &source.lexed.tokens;
        let traits = public_traits(source);
        for start in (0..tokens.len()).filter(|at| tokens[*at].is("fn")) {
            let Some(name) = tokens.get(start + 1).filter(|name| name.kind == Kind::Name) else { continue };
            let signature = &tokens[start..signature_end(tokens, start)];
            let offered =
                traits.iter().any(|(open, close)| (*open..*close).contains(&start)) || is_offered(source, start);
            if offered && fails_with_string(signature) {
                let message = format!(
                    "`{}` fails with a String, which its callers in other rooms cannot tell apart: return an error enum (thiserror)",
                    name.text
                );
                findings.push(tree.finding(at, name.line, message));
            }
        }
    }
    findings
}

/// Whether other rooms can name the item at `at`. In the package `witan`, `pub(crate)` reaches them.
fn is_offered(source: &Source<'_>, at: usize) -> bool {
    let room = rooms::of(source.path).map(|room| ROOMS[room]);
    let Some(room) = room.filter(|room| ROOMS.iter().any(|other| other.uses.contains(&room.name))) else {
        return false;
    };
    let is_module = room.kind == rooms::Kind::Module;
    match visibility(&source.lexed.tokens, at) {
        Some("pub") => true,
        Some("crate") => is_module,
        _ => false,
    }
}

/// The bodies of traits that other files can name.
fn public_traits(source: &Source<'_>) -> Vec<(usize, usize)> {
    let tokens = &source.lexed.tokens;
    let starts = (0..tokens.len()).filter(|at| tokens[*at].is("trait") && is_offered(source, *at));
    let bodies = starts.filter_map(|at| {
        let open = signature_end(tokens, at);
        tokens.get(open).filter(|open| open.is("{")).map(|_| (open, matching(tokens, open)))
    });
    bodies.collect()
}

/// Whether a signature has a `Result` whose error is `String`.
fn fails_with_string(signature: &[Token<'_>]) -> bool {
    let results = (0..signature.len()).filter(|at| signature[*at].is("Result"));
    results.into_iter().any(|at| {
        let Some(arguments) = arguments(signature, at + 1) else { return false };
        let error = arguments.rsplit(|token| token.is(",")).next().unwrap_or_default();
        let has_two = arguments.len() > error.len();
        has_two && error.last().is_some_and(|last| last.is("String")) && error.iter().all(|token| !token.is("<"))
    })
}

/// The tokens between the angle brackets that open at `open`.
fn arguments<'s, 'a>(tokens: &'s [Token<'a>], open: usize) -> Option<&'s [Token<'a>]> {
    tokens.get(open).filter(|token| token.is("<"))?;
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        depth += i32::from(token.is("<")) - i32::from(token.is(">"));
        if depth == 0 {
            return Some(&tokens[open + 1..at]);
        }
    }
    None
}

/// Looks for public constants without documentation that could be a reason.
pub fn constants(tree: &Tree<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (at, source) in tree.sources.iter().enumerate() {
        let tokens = &source.lexed.tokens;
        for start in 0..tokens.len().saturating_sub(3) {
            let named = tokens[start].is("pub") && tokens[start + 1].is("const") && tokens[start + 3].is(":");
            if named && source.documentation(start).chars().count() < REASON {
                let name = tokens[start + 2].text;
                let message =
                    format!("`{name}` does not say why it is what it is: document where its value comes from");
                findings.push(tree.finding(at, tokens[start].line, message));
            }
        }
    }
    findings
}
