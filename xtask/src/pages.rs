//! Checks the repository's Markdown pages: links lead somewhere, and the commands shown exist with their options.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Folders without pages of this repository.
const SKIPPED: [&str; 5] = ["target", ".git", ".witan", ".venv", "node_modules"];

/// Checks every `*.md` below `root`. `commands` are those of `cargo xtask`; `witan` is the program whose help is read.
pub fn check(root: &Path, commands: &clap::Command, witan: &Path) -> Result<()> {
    let mut pages = Vec::new();
    list(root, &mut pages)?;
    let mut program = Program { path: witan, help: HashMap::new() };
    let mut problems = Vec::new();
    let (mut links, mut shown) = (0, 0);
    for page in &pages {
        let text = fs::read_to_string(page).with_context(|| format!("read {}", page.display()))?;
        let name = page.strip_prefix(root).unwrap_or(page).display();
        for target in links_of(&text) {
            links += 1;
            if let Some(problem) = broken(page, &text, &target) {
                problems.push(format!("{name}: link {target}: {problem}"));
            }
        }
        for line in commands_of(&text) {
            shown += 1;
            if let Some(problem) = wrong(&line, commands, &mut program)? {
                problems.push(format!("{name}: command `{line}`: {problem}"));
            }
        }
    }
    println!("{} pages, {links} links, {shown} commands", pages.len());
    ensure!(problems.is_empty(), "{} problems:\n  {}", problems.len(), problems.join("\n  "));
    Ok(())
}

fn list(folder: &Path, pages: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let entry = entry?;
        let name = entry.file_name();
        if entry.file_type()?.is_dir() {
            if !SKIPPED.iter().any(|skipped| name == *skipped) {
                list(&entry.path(), pages)?;
            }
        } else if entry.path().extension().is_some_and(|extension| extension == "md") {
            pages.push(entry.path());
        }
    }
    pages.sort();
    Ok(())
}

/// Targets of `[text](target)` outside code blocks, except those outside the repository.
fn links_of(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut in_code = false;
    for line in text.lines() {
        in_code ^= line.trim_start().starts_with("```");
        if in_code || line.starts_with("    ") {
            continue;
        }
        for after in line.split("](").skip(1) {
            let Some((target, _)) = after.split_once(')') else { continue };
            if !target.contains("://") && !target.starts_with("mailto:") {
                found.push(target.to_owned());
            }
        }
    }
    found
}

/// What is wrong with a link on `page`.
fn broken(page: &Path, text: &str, target: &str) -> Option<String> {
    let (path, anchor) = target.split_once('#').map_or((target, None), |(path, anchor)| (path, Some(anchor)));
    let there = if path.is_empty() { page.to_path_buf() } else { page.parent()?.join(path) };
    if !there.exists() {
        return Some("leads nowhere".to_owned());
    }
    let anchor = anchor?;
    let linked = if path.is_empty() { text.to_owned() } else { fs::read_to_string(&there).ok()? };
    let has = linked.lines().filter(|line| line.starts_with('#')).any(|line| slug(line) == anchor);
    (!has).then(|| "there is no such heading".to_owned())
}

/// A heading's anchor, as forges form it.
fn slug(heading: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    heading.trim_start_matches('#').trim().to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-")
}

/// Lines in code blocks that call `cargo xtask` or `witan`, without the prompt.
fn commands_of(text: &str) -> Vec<String> {
    let mut in_code = false;
    let mut found = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
            continue;
        }
        let line = line.trim();
        let line = line.strip_prefix("$ ").unwrap_or(line);
        let line = line.split(" #").next().unwrap_or(line).trim_end_matches('\\').trim();
        if in_code && (line.starts_with("cargo xtask ") || line.starts_with("witan ")) {
            found.push(line.to_owned());
        }
    }
    found
}

/// Checks command lines of `witan` and reports all that are wrong.
pub fn check_commands(lines: &[String], witan: &Path) -> Result<()> {
    let mut program = Program { path: witan, help: HashMap::new() };
    let none = clap::Command::new("none");
    let mut problems = Vec::new();
    for line in lines {
        if let Some(problem) = wrong(line, &none, &mut program)? {
            problems.push(format!("command `{line}`: {problem}"));
        }
    }
    ensure!(problems.is_empty(), "{} problems:\n  {}", problems.len(), problems.join("\n  "));
    Ok(())
}

/// What is wrong with a command that a page shows.
fn wrong(line: &str, commands: &clap::Command, program: &mut Program<'_>) -> Result<Option<String>> {
    let words: Vec<&str> = line.split_whitespace().collect();
    if let ["cargo", "xtask", name, ..] = words[..] {
        let known = name.starts_with('-') || commands.find_subcommand(name).is_some();
        return Ok((!known).then(|| format!("cargo xtask has no command {name}")));
    }
    let rest = words.iter().skip(1);
    let names: Vec<&str> = rest
        .take_while(|w| w.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !w.starts_with('-'))
        .copied()
        .collect();
    let Some(help) = program.help_of(&names)? else {
        return Ok(Some(format!("witan has no command {}", names.join(" "))));
    };
    let flags = words.iter().filter(|word| word.starts_with("--") && word.len() > 2);
    let unknown = flags.map(|flag| flag.split('=').next().unwrap_or(flag)).find(|flag| !help.contains(*flag));
    Ok(unknown.map(|flag| format!("its help does not name {flag}")))
}

struct Program<'a> {
    path: &'a Path,
    help: HashMap<Vec<String>, Option<String>>,
}

impl Program<'_> {
    /// The help of the command that `names` begin with; the last ones may be its arguments.
    fn help_of(&mut self, names: &[&str]) -> Result<Option<String>> {
        let most = names.len().min(2);
        for count in (1..=most).rev() {
            if let Some(help) = self.ask(&names[..count])? {
                // A command with subcommands takes no arguments: the name after it is an unknown subcommand.
                return Ok((count == most || !help.contains("\nCommands:\n")).then_some(help));
            }
        }
        Ok(None)
    }

    fn ask(&mut self, names: &[&str]) -> Result<Option<String>> {
        let key: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        if let Some(known) = self.help.get(&key) {
            return Ok(known.clone());
        }
        let mut command = Command::new(self.path);
        command.args(names).arg("--help").stdin(Stdio::null());
        let output = command.output().with_context(|| format!("run {command:?}"))?;
        let help = output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned());
        // A command with positional arguments prints its help whatever follows.
        self.help.insert(key, help.clone());
        Ok(help)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_commands_are_found() {
        let page = "See [a](x.md#one) and [b](https://elsewhere.example).\n\
                    ```sh\n$ cargo xtask demo  # see\nwitan kv get t k\n[no](link)\n```\n";
        assert_eq!(links_of(page), ["x.md#one"]);
        assert_eq!(commands_of(page), ["cargo xtask demo", "witan kv get t k"]);
    }

    #[test]
    fn anchors_are_formed_as_forges_form_them() {
        assert_eq!(slug("## What `dev` does, exactly"), "what-dev-does-exactly");
    }
}
