//! Finds the series selectors in a PromQL query.

/// Words of the language that are not metrics, even if no parenthesis follows.
const WORDS: [&str; 22] = [
    "and",
    "or",
    "unless",
    "bool",
    "offset",
    "sum",
    "min",
    "max",
    "avg",
    "count",
    "group",
    "stddev",
    "stdvar",
    "topk",
    "bottomk",
    "quantile",
    "count_values",
    "inf",
    "nan",
    "group_left",
    "group_right",
    "atan2",
];
/// Words that are followed by labels in parentheses.
const GROUPINGS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];

/// The selectors in `query`: names of metrics, each with its matchers.
pub fn of(query: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = query;
    let mut word_before = "";
    while let Some(first) = rest.chars().next() {
        if first.is_ascii_alphabetic() || first == '_' || first == ':' {
            let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':')).unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            let (selector, after) = selector(word, after);
            found.extend(selector);
            (word_before, rest) = (word, after);
            continue;
        }
        let skipped = match first {
            '(' if GROUPINGS.contains(&word_before) => until(rest, ')'),
            '[' => until(rest, ']'),
            '"' => 1 + until(&rest[1..], '"'),
            // A number, or a duration with its unit.
            c if c.is_ascii_digit() => {
                rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '.').unwrap_or(rest.len())
            }
            c => c.len_utf8(),
        };
        if !first.is_whitespace() {
            word_before = "";
        }
        rest = rest.get(skipped..).unwrap_or_default();
    }
    found
}

/// The selector that begins with `word`, if that is a metric, and what follows it.
fn selector<'a>(word: &str, after: &'a str) -> (Option<String>, &'a str) {
    if after.starts_with('{') {
        let (matchers, after) = after.split_at(until(after, '}'));
        return (Some(format!("{word}{matchers}")), after);
    }
    let is_function = after.trim_start().starts_with('(');
    let is_word = WORDS.contains(&word) || GROUPINGS.contains(&word);
    ((!is_function && !is_word).then(|| word.to_owned()), after)
}

/// Bytes up to the first `end`, itself included.
fn until(text: &str, end: char) -> usize {
    text.find(end).map_or(text.len(), |at| at + end.len_utf8())
}

#[cfg(test)]
mod tests {
    use super::of;

    #[test]
    fn selectors_are_found_and_nothing_else_is() {
        let query = r#"sum by (job, le) (rate(a_total{x=~"b|c (d",y="z"}[5m])) / on (job) group_left (up) (b:c > 14.4 * 0.001) and e"#;
        assert_eq!(of(query), [r#"a_total{x=~"b|c (d",y="z"}"#, "b:c", "e"]);
        assert_eq!(of(r#"absent(up{job="w"} == 1) or vector(0)"#), [r#"up{job="w"}"#]);
        assert_eq!(of("histogram_quantile(0.99, sum(rate(h_bucket[1m] offset 5m)) by (le))"), ["h_bucket"]);
    }
}
