//! Splits Rust source into tokens and comments, each with its line.

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An identifier or a keyword.
    Name,
    /// Punctuation: one character, or one of `::`, `->`, `=>`.
    Mark,
    /// A string literal; its text is what is between the quotes, escapes as written.
    Text,
    /// A number, a character or a lifetime.
    Other,
}

/// A token.
#[derive(Debug, Clone, Copy)]
pub struct Token<'a> {
    /// What it is.
    pub kind: Kind,
    /// As written; of a string, what is between the quotes.
    pub text: &'a str,
    /// The line it begins on, from 1.
    pub line: usize,
}

impl Token<'_> {
    /// Whether it is this word or this punctuation.
    pub fn is(&self, text: &str) -> bool {
        matches!(self.kind, Kind::Name | Kind::Mark) && self.text == text
    }
}

/// Whom a comment addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comment {
    /// Readers of the source.
    Plain,
    /// Documentation of the item that follows.
    Outer,
    /// Documentation of the item around it.
    Inner,
}

/// A comment: one line of `//`, or one whole `/* */`.
#[derive(Debug, Clone, Copy)]
pub struct Remark<'a> {
    /// Whom it addresses.
    pub kind: Comment,
    /// Without its marks.
    pub text: &'a str,
    /// The line it begins on, from 1.
    pub line: usize,
    /// How many tokens come before it.
    pub at: usize,
}

/// A file's tokens and comments.
#[derive(Debug, Default)]
pub struct Lexed<'a> {
    /// In order.
    pub tokens: Vec<Token<'a>>,
    /// In order.
    pub remarks: Vec<Remark<'a>>,
}

/// Splits `text`. Never fails: what is not Rust becomes punctuation.
pub fn lex(text: &str) -> Lexed<'_> {
    let mut lexer = Lexer { text, at: 0, line: 1, out: Lexed::default() };
    while lexer.at < text.len() {
        lexer.step();
    }
    lexer.out
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
    line: usize,
    out: Lexed<'a>,
}

impl<'a> Lexer<'a> {
    fn step(&mut self) {
        let rest = &self.text[self.at..];
        let first = rest.chars().next().unwrap_or(' ');
        if first.is_whitespace() {
            self.pass(first.len_utf8());
        } else if rest.starts_with("//") {
            self.line_comment(rest);
        } else if rest.starts_with("/*") {
            self.block_comment(rest);
        } else if let Some((open, hashes)) = string_start(rest) {
            self.string(rest, open, hashes);
        } else if first == '\'' {
            let length = quote(rest);
            self.token(Kind::Other, length, 0, 0);
        } else if first.is_ascii_digit() {
            self.token(Kind::Other, number(rest), 0, 0);
        } else if let Some(raw) = rest.strip_prefix("r#").filter(|raw| name(raw) > 0) {
            self.token(Kind::Name, 2 + name(raw), 2, 0);
        } else if name(rest) > 0 {
            self.token(Kind::Name, name(rest), 0, 0);
        } else {
            let double = ["::", "->", "=>"].iter().any(|mark| rest.starts_with(mark));
            self.token(Kind::Mark, if double { 2 } else { first.len_utf8() }, 0, 0);
        }
    }

    /// Moves on by `length` bytes and counts the lines in them.
    fn pass(&mut self, length: usize) {
        let passed = &self.text[self.at..self.at + length];
        self.line += passed.bytes().filter(|byte| *byte == b'\n').count();
        self.at += length;
    }

    /// Takes `length` bytes as a token whose text leaves out `before` bytes at its start and `after` at its end.
    fn token(&mut self, kind: Kind, length: usize, before: usize, after: usize) {
        let text = &self.text[self.at + before..self.at + length - after];
        self.out.tokens.push(Token { kind, text, line: self.line });
        self.pass(length);
    }

    fn remark(&mut self, kind: Comment, length: usize, before: usize, after: usize) {
        let text = &self.text[self.at + before..self.at + length - after];
        self.out.remarks.push(Remark { kind, text, line: self.line, at: self.out.tokens.len() });
        self.pass(length);
    }

    fn line_comment(&mut self, rest: &str) {
        let length = rest.find('\n').unwrap_or(rest.len());
        let (kind, before) = match rest.as_bytes().get(2) {
            Some(b'/') if rest.as_bytes().get(3) != Some(&b'/') => (Comment::Outer, 3),
            Some(b'!') => (Comment::Inner, 3),
            _ => (Comment::Plain, 2),
        };
        self.remark(kind, length, before, 0);
    }

    fn block_comment(&mut self, rest: &str) {
        let (mut depth, mut end) = (0, 0);
        while end < rest.len() {
            if rest[end..].starts_with("/*") {
                depth += 1;
                end += 2;
            } else if rest[end..].starts_with("*/") {
                depth -= 1;
                end += 2;
                if depth == 0 {
                    break;
                }
            } else {
                end += rest[end..].chars().next().map_or(1, char::len_utf8);
            }
        }
        let (kind, before) = match rest.as_bytes().get(2) {
            Some(b'*') if !rest.starts_with("/**/") && !rest.starts_with("/***") => (Comment::Outer, 3),
            Some(b'!') => (Comment::Inner, 3),
            _ => (Comment::Plain, 2),
        };
        let after = if depth == 0 { 2 } else { 0 };
        self.remark(kind, end, before, after);
    }

    /// Takes a string whose opening is `open` bytes long, quote included; `hashes` is given for a raw one.
    fn string(&mut self, rest: &str, open: usize, hashes: Option<usize>) {
        let body = &rest[open..];
        let (length, close) = match hashes {
            Some(hashes) => {
                let close = format!("\"{}", "#".repeat(hashes));
                (body.find(&close).unwrap_or(body.len()), close.len())
            }
            None => (unescaped_quote(body), 1),
        };
        let closed = if length < body.len() { close } else { 0 };
        self.token(Kind::Text, open + length + closed, open, closed);
    }
}

/// Where a string without hashes ends.
fn unescaped_quote(body: &str) -> usize {
    let mut escaped = false;
    for (at, c) in body.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at,
            _ => {}
        }
    }
    body.len()
}

/// Length of what opens a string, quote included, and the number of hashes of a raw one.
fn string_start(rest: &str) -> Option<(usize, Option<usize>)> {
    let prefix = ["br", "cr", "r", "b", "c", ""].into_iter().find(|prefix| rest.starts_with(prefix))?;
    let after = &rest[prefix.len()..];
    let hashes = if prefix.ends_with('r') { after.bytes().take_while(|byte| *byte == b'#').count() } else { 0 };
    let opens = after[hashes..].starts_with('"');
    opens.then(|| (prefix.len() + hashes + 1, prefix.ends_with('r').then_some(hashes)))
}

/// Length of an identifier.
fn name(rest: &str) -> usize {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    if rest.starts_with(|c: char| c.is_ascii_digit()) {
        return 0;
    }
    rest.find(|c: char| !part(c)).unwrap_or(rest.len())
}

/// Length of a number, with its suffix.
fn number(rest: &str) -> usize {
    let mut end = name(&rest[1..]) + 1;
    while rest[end..].starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') {
        end += 1;
    }
    let mut after = rest[end..].chars();
    if after.next() == Some('.') && after.next().is_some_and(|c| c.is_ascii_digit()) {
        end += 1 + number(&rest[end + 1..]);
    }
    end
}

/// Length of a character literal or a lifetime.
fn quote(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), Some((at, escaped))) => {
            let body = at + escaped.len_utf8();
            rest[body..].find('\'').map_or(rest.len(), |end| body + end + 1)
        }
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 1 + name(&rest[1..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(source: &str) -> Vec<&str> {
        lex(source).tokens.iter().map(|token| token.text).collect()
    }

    #[test]
    fn tokens_are_distinguished() {
        assert_eq!(texts("fn f<'a>(x: &'a str) -> u8 { 1_0.5e3 }").len(), 17);
        assert_eq!(texts(r##"r#"a"b"# b"c\"d" 'x' '\'' 'y r#type"##), ["a\"b", "c\\\"d", "'x'", "'\\''", "'y", "type"]);
        assert_eq!(texts("a::b..=0..1"), ["a", "::", "b", ".", ".", "=", "0", ".", ".", "1"]);
    }

    #[test]
    fn comments_keep_their_lines_and_kinds() {
        let lexed = lex("//! in\n/// out\nfn f() {} // plain\n/* a /* b */\nc */ //// bar\n");
        let seen: Vec<_> = lexed.remarks.iter().map(|remark| (remark.kind, remark.line, remark.at)).collect();
        let plain = Comment::Plain;
        assert_eq!(seen, [(Comment::Inner, 1, 0), (Comment::Outer, 2, 0), (plain, 3, 6), (plain, 4, 6), (plain, 5, 6)]);
    }
}
