//! Rules about what a room offers: its errors are types that say everything once, its constants say where their numbers come from.

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

/// Looks for errors whose text contains their cause, and which give the cause as a source, too: whoever prints an error with its causes,
/// as most programs do, says that sentence twice.
pub fn sentences_said_twice(tree: &Tree<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (at, source) in tree.sources.iter().enumerate() {
        let all = &source.lexed.tokens;
        // Tests come last, and may have errors of any kind.
        let is_test = |at: &usize| all[*at].is("cfg") && all.get(at + 2).is_some_and(|of| of.is("test"));
        let tokens = &all[..(0..all.len()).find(is_test).unwrap_or(all.len())];
        for start in 0..tokens.len().saturating_sub(4) {
            let is_text =
                tokens[start].is("#") && tokens[start + 2].is("error") && tokens[start + 4].kind == Kind::Text;
            if !is_text {
                continue;
            }
            let (text, after) = (tokens[start + 4], matching(tokens, start + 1) + 1);
            for cause in causes(tokens, after) {
                if text.text.contains(&format!("{{{cause}}}")) || text.text.contains(&format!("{{{cause}:")) {
                    let message = format!(
                        "the text of this error contains its source (`{cause}`): leave it to those who print causes, or keep the cause \
                         under another name than `source` and without `#[from]` and `#[source]`"
                    );
                    findings.push(tree.finding(at, text.line, message));
                }
            }
        }
    }
    findings
}

/// The fields of the variant or struct after `from` that thiserror gives as its source: by name, or by number.
fn causes(tokens: &[Token<'_>], from: usize) -> Vec<String> {
    let Some(open) =
        (from..tokens.len()).find(|at| ["(", "{", ",", ";", "}", "#"].iter().any(|mark| tokens[*at].is(mark)))
    else {
        return Vec::new();
    };
    // `pub(crate) struct`: the parenthesis of a visibility opens no fields.
    if tokens[open].is("(") && tokens[open - 1].is("pub") {
        return causes(tokens, matching(tokens, open) + 1);
    }
    if tokens[open].is("#") {
        return causes(tokens, matching(tokens, open + 1) + 1);
    }
    if !tokens[open].is("(") && !tokens[open].is("{") {
        return Vec::new();
    }
    let (close, named) = (matching(tokens, open), tokens[open].is("{"));
    let (mut found, mut field, mut depth, mut marked) = (Vec::new(), 0, 0, false);
    let mut name = "";
    for at in open + 1..close {
        let token = &tokens[at];
        let opens = ["(", "[", "{", "<"].iter().any(|mark| token.is(mark));
        let closes = [")", "]", "}", ">"].iter().any(|mark| token.is(mark));
        depth += i32::from(opens) - i32::from(closes);
        marked |= depth == 1 && (token.is("from") || token.is("source")) && tokens[at - 1].is("[");
        if depth == 0 && token.kind == Kind::Name && tokens[at + 1].is(":") && named {
            name = token.text;
        }
        if depth == 0 && token.is(",") || at + 1 == close {
            if marked || name == "source" {
                found.push(if named { name.to_owned() } else { field.to_string() });
            }
            (field, marked, name) = (field + 1, false, "");
        }
    }
    found
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
