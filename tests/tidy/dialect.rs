//! Words of a dialect that strangers read slowly and search for in vain, counted in comments, documentation, help, messages and logs.

use crate::lex::Kind;
use crate::tree::Tree;
use crate::{File, Finding};

/// Words and phrases, and what to write instead. Matched as whole words, in either case, across line breaks.
const WORDS: [(&[&str], &str); 9] = [
    (&["told"], "reported, given, answered, known"),
    (&["stands"], "is, depends, represents, precedes"),
    (&["so", "many"], "this many, the number of, up to"),
    (&["is", "had"], "is obtained, is available"),
    (&["no", "more"], "no longer, not any more (`no more than` is fine)"),
    (&["mend"], "repair, fix, heal"),
    (&["mends"], "repairs, fixes, heals"),
    (&["mended"], "repaired, fixed, healed"),
    (&["mending"], "repairing, fixing, healing"),
];

/// Sentences of one word, whose case matters. A field's documentation says what the field is, with its unit.
const FRAGMENTS: [&str; 2] = ["Where.", "Whose."];

/// Where these words are data: here.
const EXEMPT: &str = "tests/tidy/";

/// Prose: words, each with its line.
type Prose<'a> = Vec<(usize, &'a str)>;

/// Looks for the words.
pub fn check(tree: &Tree<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut report = |path: &str, prose: Prose<'_>| {
        let found = find(&prose).into_iter().map(|(line, message)| Finding { path: path.to_owned(), line, message });
        findings.extend(found);
    };
    for source in tree.sources.iter().filter(|source| !source.path.starts_with(EXEMPT)) {
        let remarks = source.lexed.remarks.iter().map(|remark| (remark.line, remark.text));
        blocks(remarks).into_iter().for_each(|block| report(source.path, words(&block, Markup::Text)));
        let texts = source.lexed.tokens.iter().filter(|token| token.kind == Kind::Text);
        texts.for_each(|text| report(source.path, words(&[(text.line, text.text)], Markup::Format)));
    }
    for file in tree.files {
        let lines = file.text.lines().enumerate().map(|(index, line)| (index + 1, line));
        let lines: Vec<(usize, &str)> = match kind(file) {
            "md" => prose_of_page(lines),
            "proto" | "wit" => lines.filter_map(|(number, line)| Some((number, line.split_once("//")?.1))).collect(),
            "py" | "service" | "sh" | "toml" | "yaml" => {
                let comment = |line: &'_ str| line.trim_start().starts_with('#') || line.contains(" # ");
                let lines = lines.filter(|(_, line)| comment(line));
                lines.filter_map(|(number, line)| Some((number, line.split_once('#')?.1))).collect()
            }
            _ => continue,
        };
        blocks(lines.into_iter()).into_iter().for_each(|block| report(&file.path, words(&block, Markup::Text)));
    }
    findings
}

fn kind(file: &File) -> &str {
    file.path.rsplit_once('.').map_or("", |(_, kind)| kind)
}

/// Lines of a page outside its blocks of code.
fn prose_of_page<'a>(lines: impl Iterator<Item = (usize, &'a str)>) -> Vec<(usize, &'a str)> {
    let mut code = false;
    let prose = lines.filter(|(_, line)| {
        let fence = line.trim_start().starts_with("```");
        code ^= fence;
        !fence && !code && !line.trim().is_empty()
    });
    prose.collect()
}

/// Joins lines that follow each other: phrases may be broken over them.
fn blocks<'a>(lines: impl Iterator<Item = (usize, &'a str)>) -> Vec<Vec<(usize, &'a str)>> {
    let mut blocks: Vec<Vec<(usize, &str)>> = Vec::new();
    for (number, line) in lines {
        match blocks.last_mut() {
            Some(block) if block.last().is_some_and(|(last, _)| last + 1 == number) => block.push((number, line)),
            _ => blocks.push(vec![(number, line)]),
        }
    }
    blocks
}

/// What is not prose within it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Markup {
    /// Code between backticks.
    Text,
    /// Arguments between braces.
    Format,
}

fn words<'a>(block: &[(usize, &'a str)], markup: Markup) -> Prose<'a> {
    let mut words = Vec::new();
    let mut code = false;
    for (first, text) in block {
        for (further, line) in text.lines().enumerate() {
            let pieces = match markup {
                Markup::Text => line.split('`').collect::<Vec<_>>(),
                Markup::Format => line.split(['{', '}']).collect(),
            };
            for (index, piece) in pieces.into_iter().enumerate() {
                code ^= index > 0;
                if !code {
                    words.extend(
                        piece.split_whitespace().filter(|word| *word != "\\").map(|word| (first + further, word)),
                    );
                }
            }
        }
    }
    words
}

/// The places of dialect, and what to write instead.
fn find(prose: &[(usize, &str)]) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, (line, word)) in prose.iter().enumerate() {
        if FRAGMENTS.iter().any(|fragment| word.trim_start_matches(|c: char| !c.is_alphanumeric()) == *fragment) {
            found.push((*line, format!("`{word}` is not a sentence: say what the field is, with its unit")));
        }
        for (phrase, instead) in &WORDS {
            if is_at(phrase, &prose[at..]) {
                found.push((*line, format!("`{}`: write {instead}", phrase.join(" "))));
            }
        }
    }
    found
}

fn is_at(phrase: &[&str], prose: &[(usize, &str)]) -> bool {
    let bare = |word: &str| word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
    let last = phrase.len() - 1;
    let matches = phrase.len() <= prose.len()
        && phrase.iter().zip(prose).enumerate().all(|(index, (wanted, (_, word)))| {
            bare(word) == *wanted && (index == last || word.ends_with(|c: char| c.is_alphanumeric()))
        });
    let more_than = phrase == ["no", "more"]
        && prose.get(1).is_some_and(|(_, more)| more.ends_with('e'))
        && prose.get(2).is_some_and(|(_, than)| bare(than) == "than");
    matches && !more_than
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<(usize, String)> {
        let files = [File { path: path.to_owned(), text: text.to_owned() }];
        let quoted = |message: String| message.split('`').nth(1).unwrap_or_default().to_owned();
        check(&Tree::of(&files)).into_iter().map(|finding| (finding.line, quoted(finding.message))).collect()
    }

    fn is_found(path: &str, text: &str, line: usize, words: &str) {
        assert_eq!(found(path, text), [(line, words.to_owned())], "{text}");
    }

    #[test]
    fn dialect_is_found_in_comments_and_strings() {
        is_found("a.rs", "/// It is told.\nfn f() {}", 1, "told");
        is_found("a.rs", "// Waits for so\n// many answers.", 1, "so many");
        is_found("a.rs", "fn f() { info!(\"the node\\\n  takes part no more\") }", 2, "no more");
        is_found("a.rs", "struct A {\n    /// Where.\n    b: u8,\n}", 2, "Where.");
        is_found("a.rs", "/* one\ntwo mended */", 2, "mended");
    }

    #[test]
    fn dialect_is_found_in_pages_and_interfaces() {
        is_found("a.md", "It stands\nhere.\n\n```\nit stands\n```\n", 1, "stands");
        is_found("a.proto", "message A {} // It is had.\n", 1, "is had");
        is_found("a.toml", "a = \"told\"\n# Told.\n", 2, "told");
    }

    #[test]
    fn other_words_are_not() {
        for text in [
            "// It is no more than 3, not somewhere. Amended, understands.",
            "fn told() { f(\"{told} {}\") } // `told`, so. Many",
            "/// Where it is. Whose key",
        ] {
            assert_eq!(found("a.rs", text), [], "{text}");
        }
    }
}
