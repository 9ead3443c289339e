//! Suggestions for mistyped keys.

use super::keys::KEYS;

/// The known key or section nearest to `path`; `None` if none is near.
pub(super) fn key(path: &str) -> Option<&'static str> {
    let sections = KEYS.iter().filter_map(|key| Some(key.path.rsplit_once('.')?.0));
    let known = KEYS.iter().map(|key| key.path).chain(sections);
    let near = nearest(path, known);
    near.or_else(|| {
        // The right name in another section.
        let last = path.rsplit('.').next().unwrap_or(path);
        KEYS.iter().map(|key| key.path).find(|known| known.rsplit('.').next() == Some(last))
    })
}

/// The one of `known` with the smallest edit distance, if that is at most a third of the length.
pub(super) fn nearest<'a>(text: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Longer text is not a typo, and the work below grows with the length.
    let text: Vec<char> = text.chars().take(100).collect();
    let (distance, near) = known.map(|known| (distance(&text, known), known)).min()?;
    (distance <= (text.len() / 3).clamp(1, 4)).then_some(near)
}

/// The edit distance with insertions, deletions, replacements and swaps of neighbours (restricted Damerau-Levenshtein).
fn distance(from: &[char], to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.iter().enumerate() {
        let mut next = vec![i + 1];
        for (j, b) in to.iter().enumerate() {
            let replaced = row[j] + usize::from(a != b);
            let mut least = replaced.min(row[j + 1] + 1).min(next[j] + 1);
            if i > 0 && j > 0 && from[i - 1] == *b && to[j - 1] == *a {
                least = least.min(before[j - 1] + 1);
            }
            next.push(least);
        }
        before = std::mem::replace(&mut row, next);
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::key;

    #[test]
    fn near_keys_are_found_and_far_ones_are_not() {
        assert_eq!(key("server.prot"), Some("server.port"));
        assert_eq!(key("servr.port"), Some("server.port"));
        assert_eq!(key("sever"), Some("server"));
        assert_eq!(key("consistency.defaultlevel"), Some("consistency.default_level"));
        assert_eq!(key("data_dir"), Some("server.data_dir"));
        assert_eq!(key("zzzz.qqqq"), None);
        assert_eq!(key(""), None);
        assert_eq!(key(&"x".repeat(1 << 20)), None);
    }
}
