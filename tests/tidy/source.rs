//! One Rust file, read without its neighbours: which paths it names, what it imports and declares, which of it is test code.

use crate::lex::{Comment, Kind, Lexed, Token, lex};

/// A path that a file names: `crate::a::B`, `super::c`, `tokio::spawn`.
#[derive(Debug, Clone)]
pub struct Reference<'a> {
    /// Its segments.
    pub path: Vec<&'a str>,
    /// Where it is, from 1.
    pub line: usize,
    /// Inline modules around it: each `super` leaves one of them first.
    pub inline: usize,
    /// Whether only tests compile it.
    pub test: bool,
}

/// One name that a `use` brings in.
#[derive(Debug, Clone)]
pub struct Import<'a> {
    /// The name in this file; `*` for all.
    pub name: &'a str,
    /// What it is a name for.
    pub what: Reference<'a>,
    /// Whether others see it here: `pub use`, with or without a restriction.
    pub public: bool,
}

/// A module that a file declares, its text being elsewhere.
#[derive(Debug, Clone)]
pub struct Declared<'a> {
    /// Its name.
    pub name: &'a str,
    /// Whether only tests compile it.
    pub test: bool,
}

/// A function with a body.
#[derive(Debug)]
pub struct Function<'a> {
    /// Its name.
    pub name: &'a str,
    /// The line of its name.
    pub line: usize,
    /// Lines between its braces.
    pub lines: usize,
}

/// A file.
#[derive(Debug)]
pub struct Source<'a> {
    /// Its path in the repository.
    pub path: &'a str,
    /// Its text.
    pub text: &'a str,
    /// Its tokens and comments.
    pub lexed: Lexed<'a>,
    /// Paths outside `use`.
    pub references: Vec<Reference<'a>>,
    /// What `use` brings in.
    pub imports: Vec<Import<'a>>,
    /// `mod name;`
    pub declared: Vec<Declared<'a>>,
    /// For each token, whether only tests compile it.
    tests: Vec<bool>,
}

impl<'a> Source<'a> {
    /// Reads a file.
    pub fn of(path: &'a str, text: &'a str) -> Self {
        let lexed = lex(text);
        let tests = tests(&lexed.tokens);
        let mut source =
            Self { path, text, lexed, references: Vec::new(), imports: Vec::new(), declared: Vec::new(), tests };
        source.scan();
        source
    }

    fn scan(&mut self) {
        // Depths of braces at which inline modules were opened.
        let (mut depth, mut modules): (usize, Vec<usize>) = (0, Vec::new());
        let mut at = 0;
        while at < self.lexed.tokens.len() {
            let tokens = &self.lexed.tokens;
            let token = tokens[at];
            let named = tokens.get(at + 1).filter(|next| next.kind == Kind::Name);
            if token.is("{") {
                depth += 1;
            } else if token.is("}") {
                depth = depth.saturating_sub(1);
                modules.pop_if(|opened| *opened >= depth);
            } else if token.is("use") && tokens.get(at + 1).is_some_and(|next| !next.is("<")) {
                let public = is_visible(tokens, at);
                at = self.import(at + 1, public, modules.len());
                continue;
            } else if let (true, Some(name)) = (token.is("mod"), named) {
                match tokens.get(at + 2) {
                    Some(next) if next.is(";") => {
                        self.declared.push(Declared { name: name.text, test: self.tests[at] });
                    }
                    Some(next) if next.is("{") => modules.push(depth),
                    _ => {}
                }
            } else if let Some(end) = path_from(tokens, at) {
                let path = (at..end).step_by(2).map(|at| tokens[at].text).collect();
                self.references.push(Reference { path, line: token.line, inline: modules.len(), test: self.tests[at] });
                at = end;
                continue;
            }
            at += 1;
        }
    }

    /// Takes the tree of a `use` that begins at `at`; returns where it ends.
    fn import(&mut self, at: usize, public: bool, inline: usize) -> usize {
        let mut found = Vec::new();
        let end = tree(&self.lexed.tokens, at, &mut Vec::new(), &mut found);
        for (name, path, token) in found {
            let line = self.lexed.tokens[token].line;
            let what = Reference { path, line, inline, test: self.tests[at] };
            self.imports.push(Import { name, what, public });
        }
        end
    }

    /// Paths outside `use` and in it.
    pub fn all(&self) -> impl Iterator<Item = &Reference<'a>> {
        self.references.iter().chain(self.imports.iter().map(|import| &import.what))
    }

    /// Whether the whole file says of itself that only tests compile it.
    pub fn is_test(&self) -> bool {
        self.lexed.tokens.starts_with_marks(&["#", "!", "["]) && self.tests.first() == Some(&true)
    }

    /// Functions with a body.
    pub fn functions(&self) -> Vec<Function<'a>> {
        let tokens = &self.lexed.tokens;
        let starts = (0..tokens.len()).filter(|at| tokens[*at].is("fn"));
        let bodies = starts.filter_map(|at| {
            let name = tokens.get(at + 1).filter(|name| name.kind == Kind::Name)?;
            let open = signature_end(tokens, at);
            let opened = tokens.get(open).filter(|end| end.is("{"))?;
            let closed = tokens.get(matching(tokens, open)).or(tokens.last())?;
            let lines = (closed.line - opened.line).saturating_sub(1);
            Some(Function { name: name.text, line: name.line, lines })
        });
        bodies.collect()
    }

    /// Documentation of the item whose first token, its attributes aside, is at `at`.
    pub fn documentation(&self, at: usize) -> String {
        let first = self.attributes_start(at);
        let remarks = self.lexed.remarks.iter().filter(|remark| (first..=at).contains(&remark.at));
        let texts = remarks.filter(|remark| remark.kind == Comment::Outer).map(|remark| remark.text.trim());
        texts.collect::<Vec<_>>().join(" ")
    }

    /// Where the attributes before `at` begin.
    fn attributes_start(&self, mut at: usize) -> usize {
        let tokens = &self.lexed.tokens;
        while at > 0 && tokens[at - 1].is("]") {
            let mut depth = 0;
            let open = (0..at).rev().find(|at| {
                depth += i32::from(tokens[*at].is("]")) - i32::from(tokens[*at].is("["));
                depth == 0
            });
            match open {
                Some(open) if open > 0 && tokens[open - 1].is("#") => at = open - 1,
                _ => break,
            }
        }
        at
    }
}

/// Whether a sequence of tokens begins with these marks.
trait StartsWith {
    fn starts_with_marks(&self, marks: &[&str]) -> bool;
}

impl StartsWith for Vec<Token<'_>> {
    fn starts_with_marks(&self, marks: &[&str]) -> bool {
        self.len() >= marks.len() && self.iter().zip(marks).all(|(token, mark)| token.is(mark))
    }
}

/// Whether the item whose keyword is at `at` is visible outside its module: `pub`, with or without a restriction.
pub fn is_visible(tokens: &[Token<'_>], at: usize) -> bool {
    visibility(tokens, at).is_some()
}

/// The visibility in front of the keyword at `at`, its qualifiers (`const`, `async`, `unsafe`) skipped: `pub`, or the
/// restriction's first word.
pub fn visibility<'a>(tokens: &[Token<'a>], at: usize) -> Option<&'a str> {
    let mut at = at;
    while at > 0
        && (["const", "async", "unsafe", "extern"].iter().any(|word| tokens[at - 1].is(word))
            || tokens[at - 1].kind == Kind::Text)
    {
        at -= 1;
    }
    let before = tokens.get(at.checked_sub(1)?)?;
    if before.is("pub") {
        return Some("pub");
    }
    if !before.is(")") {
        return None;
    }
    let open = (0..at).rev().find(|at| tokens[*at].is("("))?;
    let restricted = open > 0 && tokens[open - 1].is("pub");
    restricted.then(|| tokens[open + 1].text)
}

/// Where the signature of the function at `at` ends: its `{` or `;`.
pub fn signature_end(tokens: &[Token<'_>], at: usize) -> usize {
    let mut depth = 0;
    for (index, token) in tokens.iter().enumerate().skip(at) {
        if token.is("(") || token.is("[") {
            depth += 1;
        } else if token.is(")") || token.is("]") {
            depth -= 1;
        } else if depth == 0 && (token.is("{") || token.is(";")) {
            return index;
        }
    }
    tokens.len()
}

/// Where the brace, bracket or parenthesis at `open` is closed.
pub fn matching(tokens: &[Token<'_>], open: usize) -> usize {
    let mut depth = 0;
    for (index, token) in tokens.iter().enumerate().skip(open) {
        depth += step(token);
        if depth == 0 {
            return index;
        }
    }
    tokens.len()
}

/// What a token adds to the depth of braces, brackets and parentheses.
fn step(token: &Token<'_>) -> i32 {
    match token.text {
        "{" | "[" | "(" if token.kind == Kind::Mark => 1,
        "}" | "]" | ")" if token.kind == Kind::Mark => -1,
        _ => 0,
    }
}

/// Where the path that begins at `at` ends; `None` if none begins there. A single name is none.
fn path_from(tokens: &[Token<'_>], at: usize) -> Option<usize> {
    let is_name = |at: usize| tokens.get(at).is_some_and(|token| token.kind == Kind::Name);
    let goes_on = |at: usize| tokens.get(at).is_some_and(|token| token.is("::")) && is_name(at + 1);
    let before = |back: usize| at.checked_sub(back).map(|at| tokens[at]);
    let inside = before(1).is_some_and(|token| token.is("."))
        || before(1).is_some_and(|token| token.is("::"))
            && before(2).is_some_and(|token| token.kind == Kind::Name || token.is(">"));
    if !is_name(at) || inside || !goes_on(at + 1) {
        return None;
    }
    let mut end = at + 1;
    while goes_on(end) {
        end += 2;
    }
    Some(end)
}

/// Collects the leaves of a `use` tree: the name in this file, the path, and the token it ends with. Returns where the tree ends.
fn tree<'a>(
    tokens: &[Token<'a>],
    mut at: usize,
    prefix: &mut Vec<&'a str>,
    found: &mut Vec<(&'a str, Vec<&'a str>, usize)>,
) -> usize {
    let depth = prefix.len();
    while let Some(token) = tokens.get(at) {
        if token.is("{") {
            at += 1;
            while tokens.get(at).is_some_and(|token| !token.is("}")) {
                let before = at;
                at = tree(tokens, at, prefix, found);
                if tokens.get(at).is_some_and(|token| token.is(",")) || at == before {
                    at += 1;
                }
            }
            prefix.truncate(depth);
            return at + 1;
        } else if token.is("*") {
            found.push(("*", prefix.clone(), at));
            prefix.truncate(depth);
            return at + 1;
        } else if token.is("::") {
            at += 1;
        } else if token.kind == Kind::Name && !token.is("as") {
            prefix.push(token.text);
            at += 1;
            if tokens.get(at).is_some_and(|next| next.is("::")) {
                continue;
            }
            let mut path = prefix.clone();
            // `a::{self}` is `a`.
            if path.len() > 1 && path.last() == Some(&"self") {
                path.pop();
            }
            let mut name = path.last().copied().unwrap_or("self");
            let last = at - 1;
            if tokens.get(at).is_some_and(|next| next.is("as")) {
                name = tokens.get(at + 1).map_or(name, |alias| alias.text);
                at += 2;
            }
            found.push((name, path, last));
            prefix.truncate(depth);
            return at;
        } else {
            break;
        }
    }
    prefix.truncate(depth);
    at
}

/// For each token, whether it belongs to an item that is compiled for tests only.
fn tests(tokens: &[Token<'_>]) -> Vec<bool> {
    let mut tests = vec![false; tokens.len()];
    let mut at = 0;
    while at + 1 < tokens.len() {
        let inner = tokens[at].is("#") && tokens[at + 1].is("!");
        let open = at + 1 + usize::from(inner);
        if !(tokens[at].is("#") && tokens.get(open).is_some_and(|token| token.is("["))) {
            at += 1;
            continue;
        }
        let close = matching(tokens, open);
        if is_for_tests(&tokens[open..close.min(tokens.len())]) {
            let end = if inner { tokens.len() } else { item_end(tokens, close + 1) };
            tests[at..end].fill(true);
        }
        at = close + 1;
    }
    tests
}

/// Whether an attribute is `cfg(test)`, or an `any` or `all` with it.
fn is_for_tests(attribute: &[Token<'_>]) -> bool {
    let has = |word: &str| attribute.iter().any(|token| token.is(word));
    attribute.get(1).is_some_and(|token| token.is("cfg")) && has("test") && !has("not")
}

/// Where the item that begins at `at` ends: after its `;`, or after its braces, or where what is around it ends.
fn item_end(tokens: &[Token<'_>], at: usize) -> usize {
    let mut depth = 0;
    for (index, token) in tokens.iter().enumerate().skip(at) {
        depth += step(token);
        if depth < 0 {
            return index;
        }
        if depth == 0 && (token.is(";") || token.is("}")) {
            return index + 1;
        }
    }
    tokens.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(source: &Source<'_>) -> Vec<String> {
        source.all().map(|found| format!("{}{}", found.path.join("::"), if found.test { "?" } else { "" })).collect()
    }

    #[test]
    fn paths_are_found_wherever_they_are() {
        let source = Source::of("x.rs", "fn f() { select! { x = crate::a::B::new() => <u8 as c::D>::e(g::<h::I>) } }");
        assert_eq!(paths(&source), ["crate::a::B::new", "c::D", "h::I"]);
    }

    #[test]
    fn trees_of_use_are_unfolded() {
        let text = "pub(crate) use a::{self, b::{C, D as E}, f::*};\nuse ::g as h;\nfn x() -> impl Y + use<'_> {}";
        let source = Source::of("x.rs", text);
        let found: Vec<_> =
            source.imports.iter().map(|i| (i.name, i.what.path.join("::"), i.public, i.what.line)).collect();
        let expected = [("a", "a"), ("C", "a::b::C"), ("E", "a::b::D"), ("*", "a::f"), ("h", "g")];
        let expected: Vec<_> =
            expected.map(|(name, path)| (name, path.to_owned(), name != "h", 1 + usize::from(name == "h"))).into();
        assert_eq!(found, expected);
    }

    #[test]
    fn test_code_is_recognized() {
        let text = "use a::A;\n#[cfg(test)]\nuse b::B;\n#[cfg(not(test))]\nuse c::C;\n\
                    #[cfg(test)]\n#[allow(x)]\nmod tests { use d::D; }\n#[cfg(any(test, x))] mod testing;\nuse e::E;";
        let source = Source::of("x.rs", text);
        assert_eq!(paths(&source), ["a::A", "b::B?", "c::C", "d::D?", "e::E"]);
        assert!(source.declared[0].test && !source.is_test());
        assert!(Source::of("x.rs", "#![cfg(test)]\nuse a::A;").is_test());
    }

    #[test]
    fn inline_modules_are_counted() {
        let source = Source::of("x.rs", "mod a { mod b { use super::super::c; } use super::d; } use e::f;");
        let depths: Vec<_> = source.imports.iter().map(|import| import.what.inline).collect();
        assert_eq!(depths, [2, 1, 0]);
    }

    #[test]
    fn lines_of_bodies_are_counted() {
        let source =
            Source::of("x.rs", "fn a(x: [u8; 2]) {\n1;\n\n2\n}\nfn b() {}\ntrait C { fn d(); }\ntype E = fn(u8);");
        let functions: Vec<_> = source.functions().iter().map(|f| (f.name, f.lines)).collect();
        assert_eq!(functions, [("a", 3), ("b", 0)]);
    }

    #[test]
    fn documentation_is_found_over_attributes() {
        let source =
            Source::of("x.rs", "/// Of x.\nstruct X;\n/// Of y,\n#[a(b)]\n/// and more.\npub const Y: u8 = 1;");
        let at = source.lexed.tokens.iter().position(|token| token.is("pub")).unwrap_or(0);
        assert_eq!(source.documentation(at), "Of y, and more.");
    }
}
