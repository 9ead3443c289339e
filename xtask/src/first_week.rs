//! `cargo xtask first-week`: runs the page docs/first-week.md.
//!
//! Its code blocks are the script: what a reader copies is what is tested. `sh` blocks are run in order by one bash; `yaml` and `python`
//! blocks become the files that their first lines name (`# coordinator-1.yaml`); `sh by-hand` and all other blocks are for the reader
//! only.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};
use witan_servers::{Port, Postgres, Redis, Workplace};

use crate::{python, run, tools};

/// The page, below the repository's root.
const PAGE: &str = "docs/first-week.md";
/// Every port that the page names; each is replaced by a free one.
const PORTS: [&str; 7] = ["50051", "50052", "50053", "50054", "50061", "9090", "9091"];
/// Lines of each log that are printed if a command fails.
const SHOWN: usize = 12;

/// The script's first line, in place of the page's title: from then on a command that fails ends the script and is printed with its line
/// on the page.
const PROLOGUE: &str = concat!(
    "set -Eeuo pipefail; ",
    r#"trap 'echo "docs/first-week.md, line $LINENO: \`$BASH_COMMAND\` ended with $?" >&2' ERR; "#,
    r#"announce() { printf '\n--> %s\n' "$1"; }"#,
);

/// Ends a file in the script; no file on the page may contain this line.
const END: &str = "END_OF_THE_FILE";

/// Options of `cargo xtask first-week`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The program to use [default: built from this repository]
    #[arg(long, value_name = "FILE")]
    witan: Option<PathBuf>,
    /// The folder with the plugins [default: built from this repository]
    #[arg(long, value_name = "FOLDER")]
    plugins: Option<PathBuf>,
}

/// Runs the page.
pub fn run(arguments: &Arguments) -> Result<()> {
    tools::install()?;
    let plugins = match &arguments.plugins {
        Some(plugins) => plugins.clone(),
        None => run::guests()?,
    };
    let witan = match &arguments.witan {
        Some(witan) => witan.clone(),
        None => run::witan()?,
    };
    check(&witan, &plugins)
}

/// Runs the page with this program and these plugins.
pub fn check(witan: &Path, plugins: &Path) -> Result<()> {
    let missing: Vec<&str> = ["bash", "openssl", "curl"].into_iter().filter(|name| !run::is_installed(name)).collect();
    if !missing.is_empty() {
        run::install(&missing)?;
    }
    let root = run::root();
    let examples = root.join("examples/python");
    let python = python::environment(&examples.join("requirements.txt"), &root.join("target/python"), &[])?;
    let text = fs::read_to_string(root.join(PAGE)).with_context(|| format!("read {PAGE}"))?;
    let ports = PORTS.map(|documented| (documented, Port::free()));
    let script = script(&with_ports(&text, &ports.each_ref().map(|(documented, free)| (*documented, free.number()))))?;

    let started = Instant::now();
    // Dropped in reverse order: the page's processes before the servers that they use.
    let postgres = Postgres::start();
    let redis = Redis::start();
    let workplace = Workplace::new("witan-first-week-");
    let folder = workplace.path();
    // The folder holds only what the page puts there, and this.
    let bin = folder.join("bin");
    fs::create_dir(&bin).context("make a folder for the program")?;
    symlink(fs::canonicalize(witan).with_context(|| format!("find {}", witan.display()))?, bin.join("witan"))
        .context("link the program")?;
    let file = folder.join("first-week.sh");
    fs::write(&file, &script).with_context(|| format!("write {}", file.display()))?;

    let mut bash = Command::new("bash");
    bash.arg(&file).current_dir(folder).stdin(Stdio::null());
    // Variables that the user has set for `witan` must not reach the page's programs.
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_str().is_some_and(|name| name.starts_with("WITAN_"))) {
        bash.env_remove(name);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths(std::iter::once(bin).chain(env::split_paths(&path))).context("make a search path")?;
    bash.env("PATH", path).env("PYTHON", python).env("EXAMPLES", &examples).env("PLUGINS", fs::canonicalize(plugins)?);
    bash.env("DATABASE", postgres.url() + "?sslmode=disable").env("REDIS", redis.url());
    // Nobody knows how full the disk of this machine is.
    bash.env("WITAN_PLACEMENT__FULL_DISK", "100");
    let status = bash.status().context("run bash")?;
    if !status.success() {
        show_logs(&folder.join("log"))?;
        bail!("{PAGE} does not work as written: the line that failed is named above, followed by the ends of the logs");
    }
    println!(
        "\nThe first week took {} minutes; every process that it started has ended.",
        run::minutes(started.elapsed())
    );
    Ok(())
}

/// Prints the end of every log.
fn show_logs(folder: &Path) -> Result<()> {
    // There is none if the page fails at its beginning.
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    let mut logs: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    logs.sort();
    for log in logs {
        let text = fs::read(&log).with_context(|| format!("read {}", log.display()))?;
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        eprintln!("\n--- {} ---", log.file_name().unwrap_or_default().to_string_lossy());
        lines[lines.len().saturating_sub(SHOWN)..].iter().for_each(|line| eprintln!("{line}"));
    }
    Ok(())
}

/// Replaces ports in the text. Only whole numbers are ports.
fn with_ports(text: &str, ports: &[(&str, u16)]) -> String {
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
fn script(page: &str) -> Result<String> {
    let mut out = String::new();
    let (mut part, mut heading) = (Part::Prose, "");
    let mut lines = page.lines().enumerate().peekable();
    while let Some((index, line)) = lines.next() {
        let number = index + 1;
        let translated = match (line.strip_prefix("```"), &part) {
            (Some(info), Part::Prose) => {
                let name = lines.peek().and_then(|(_, first)| name_of_file(first));
                match (info, name) {
                    ("sh", _) => {
                        part = Part::Commands;
                        format!("announce '{} (line {number})'", heading.replace('\'', r"'\''"))
                    }
                    ("yaml" | "python", Some(name)) => {
                        part = Part::File;
                        format!("cat >{name} <<'{END}'")
                    }
                    ("yaml" | "python", None) => bail!("{PAGE}, line {number}: its first line names no file"),
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
                ensure!(line != END, "{PAGE}, line {number}: {END} is reserved for this program");
                line.to_owned()
            }
            (None, Part::Prose) => {
                if let Some(title) = line.strip_prefix("## ") {
                    heading = title;
                }
                if number == 1 { PROLOGUE.to_owned() } else { String::new() }
            }
            (None, Part::Shown) => String::new(),
        };
        out.push_str(&translated);
        out.push('\n');
    }
    if !matches!(part, Part::Prose) {
        bail!("{PAGE}: its last block does not end");
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
        let script = script(SMALL).unwrap();
        let lines: Vec<&str> = script.lines().collect();
        assert_eq!(lines.len(), SMALL.lines().count());
        assert_eq!(lines[0], PROLOGUE);
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
            let error = script(page).unwrap_err().to_string();
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

    #[test]
    fn the_page_is_a_script() {
        let page = fs::read_to_string(run::root().join(PAGE)).unwrap();
        let script = script(&page).unwrap();
        assert_eq!(script.lines().count(), page.lines().count());
        for port in PORTS {
            assert!(script.contains(port), "{port}");
        }
        assert!(!script.contains("by-hand") && script.contains("cat >coordinator-1.yaml"));
    }
}
