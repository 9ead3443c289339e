//! Pages whose code blocks are a script. `sh` blocks are run in order by one bash; `yaml` and `python` blocks become the files that their
//! first lines name (`# coordinator-1.yaml`); `sh by-hand` and all other blocks are for the reader only.

use anyhow::{Result, bail, ensure};

/// Kinds of blocks that are files.
const FILES: [&str; 2] = ["yaml", "python"];

/// Ends a file in the script; no file on a page may contain this line.
const END: &str = "END_OF_THE_FILE";

/// A script's first line, in place of the page's title: from then on a command that fails ends the script and is printed with its line on
/// the page.
fn prologue(name: &str) -> String {
    [
        "set -Eeuo pipefail; ",
        &format!(r#"trap 'echo "{name}, line $LINENO: \`$BASH_COMMAND\` ended with $?" >&2' ERR; "#),
        r#"announce() { printf '\n--> %s\n' "$1"; }"#,
    ]
    .concat()
}

/// Replaces ports in the text. Only whole numbers are ports.
pub fn with_ports(text: &str, ports: &[(&str, u16)]) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        let end = rest[start..].find(|c: char| !c.is_ascii_digit()).map_or(rest.len(), |length| start + length);
        let number = &rest[start..end];
        out.push_str(&rest[..start]);
        match ports.iter().find(|(documented, _)| *documented == number) {
            Some((_, free)) => out.push_str(&free.to_string()),
            None => out.push_str(number),
        }
        rest = &rest[end..];
    }
    out + rest
}

/// The part of the page that a line belongs to.
enum Part {
    Prose,
    /// Lines to run.
    Commands,
    /// Lines of a file.
    File,
    /// Lines for the reader.
    Shown,
}

/// The page as a script for bash, line for line, so that bash reports line numbers of the page.
pub fn script(name: &str, page: &str) -> Result<String> {
    let mut out = String::new();
    let (mut part, mut heading) = (Part::Prose, "");
    let mut lines = page.lines().enumerate().peekable();
    while let Some((index, line)) = lines.next() {
        let number = index + 1;
        let translated = match (line.strip_prefix("```"), &part) {
            (Some(info), Part::Prose) => {
                let file = lines.peek().and_then(|(_, first)| name_of_file(first));
                match (info, file) {
                    ("sh", _) => {
                        part = Part::Commands;
                        format!("announce '{} (line {number})'", heading.replace('\'', r"'\''"))
                    }
                    (_, Some(file)) if FILES.contains(&info) => {
                        part = Part::File;
                        format!("cat >{file} <<'{END}'")
                    }
                    (_, None) if FILES.contains(&info) => bail!("{name}, line {number}: its first line names no file"),
                    _ => {
                        part = Part::Shown;
                        String::new()
                    }
                }
            }
            (Some(_), _) => {
                let file = matches!(part, Part::File);
                part = Part::Prose;
                if file { END.to_owned() } else { String::new() }
            }
            (None, Part::Commands | Part::File) => {
                ensure!(line != END, "{name}, line {number}: {END} is reserved for this program");
                line.to_owned()
            }
            (None, Part::Prose) => {
                if let Some(title) = line.strip_prefix("## ") {
                    heading = title;
                }
                if number == 1 { prologue(name) } else { String::new() }
            }
            (None, Part::Shown) => String::new(),
        };
        out.push_str(&translated);
        out.push('\n');
    }
    if !matches!(part, Part::Prose) {
        bail!("{name}: its last block does not end");
    }
    Ok(out)
}

/// The file name that a comment consists of: `# coordinator-1.yaml`.
fn name_of_file(line: &str) -> Option<&str> {
    let name = line.strip_prefix("# ")?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (name.contains('.') && !name.starts_with('.') && name.chars().all(plain)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = concat!(
        "# Title\n\n```sh by-hand\nmake it\n```\n",
        "## It's so\n```yaml\n# a-1.yaml\nport: 50051\n```\n",
        "Text\n```sh\ncat a-1.yaml\n```\n```text\nseen\n```\n",
    );

    #[test]
    fn a_page_is_a_script_line_for_line() {
        let script = script("page.md", SMALL).unwrap();
        let lines: Vec<&str> = script.lines().collect();
        assert_eq!(lines.len(), SMALL.lines().count());
        assert_eq!(lines[0], prologue("page.md"));
        assert_eq!(&lines[6..10], ["cat >a-1.yaml <<'END_OF_THE_FILE'", "# a-1.yaml", "port: 50051", END]);
        assert_eq!(&lines[11..14], [r"announce 'It'\''s so (line 12)'", "cat a-1.yaml", ""]);
        let rest = lines[1..6].iter().chain(&lines[14..]).chain([&lines[10]]);
        assert!(rest.clone().all(|line| line.is_empty()), "{rest:?}");
    }

    #[test]
    fn mistakes_on_the_page_are_reported() {
        for (page, part) in [
            ("# T\n```sh\ntrue\n", "does not end"),
            ("# T\n```yaml\nport: 1\n```\n", "line 2: its first line names no file"),
            ("# T\n```sh\nEND_OF_THE_FILE\n```\n", "line 3"),
        ] {
            let error = script("page.md", page).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn files_have_plain_names() {
        assert_eq!(name_of_file("# write.py"), Some("write.py"));
        for other in ["# two words.yaml", "# ../up.yaml", "# plain", "name.yaml", "# .hidden"] {
            assert_eq!(name_of_file(other), None, "{other}");
        }
    }

    #[test]
    fn ports_are_whole_numbers() {
        let ports = [("50051", 20000), ("9090", 20001)];
        assert_eq!(with_ports("s/50051/150051/ :9090, 90901", &ports), "s/20000/150051/ :20001, 90901");
    }
}
