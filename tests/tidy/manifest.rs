//! What a `Cargo.toml` depends on. Only as much of TOML as this repository's manifests use.

/// A dependency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dependency {
    /// The crate's name, as paths spell it.
    pub name: String,
    /// The line, from 1.
    pub line: usize,
    /// Whether only tests use it.
    pub dev: bool,
}

/// The dependencies that a manifest lists, those of builds and of single targets included.
pub fn dependencies(text: &str) -> Vec<Dependency> {
    let mut found = Vec::new();
    // Whether the section lists dependencies, and whether these are for tests.
    let (mut listed, mut dev) = (false, false);
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(section) = line.strip_prefix('[') {
            let section = section.trim_end_matches(']');
            let within = section.rsplit_once("dependencies").filter(|_| !section.starts_with("workspace"));
            dev = section.contains("dev-dependencies");
            listed = within.is_some_and(|(_, rest)| rest.is_empty());
            // `[dependencies.name]` lists one.
            if let Some(name) = within.and_then(|(_, rest)| rest.strip_prefix('.')) {
                found.push(Dependency { name: spelt(name), line: index + 1, dev });
            }
        } else if listed && line.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '"') {
            let name = line.split(['=', '.', ' ']).next().unwrap_or_default();
            found.push(Dependency { name: spelt(name), line: index + 1, dev });
        }
    }
    found
}

fn spelt(name: &str) -> String {
    name.trim_matches('"').replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_of_all_sections_are_found() {
        let text = "[package]\nname = \"x\"\n[dependencies]\n# a comment\na-b.workspace = true\nc = { version = \"1\" }\n\
                    [target.'cfg(unix)'.dependencies]\nd = \"1\"\n[dev-dependencies]\ne = \"1\"\n[dependencies.f]\nversion = \"1\"\n\
                    [workspace.dependencies]\ng = \"1\"\n[[test]]\nname = \"it\"\n";
        let found: Vec<_> = dependencies(text).into_iter().map(|it| (it.name, it.line, it.dev)).collect();
        let expected = [("a_b", 5, false), ("c", 6, false), ("d", 8, false), ("e", 10, true), ("f", 11, false)];
        assert_eq!(found, expected.map(|(name, line, dev)| (name.to_owned(), line, dev)));
    }
}
