//! The files that a new project is made of.

use anyhow::{Context, Result};
use witan_guests::pins::Pin;
use witan_kernel::hook::Hook;

use crate::bindings;
use crate::files::{self, File};
use crate::language::Language;

/// What a project is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its name, which is that of its folder, of its component, and what the plugin calls itself.
    pub name: String,
    /// The hook that it implements.
    pub hook: Hook,
    /// What it is written in.
    pub language: Language,
}

/// Every file of a project.
pub fn files(wanted: &Wanted) -> Result<Vec<File>> {
    let mut files: Vec<File> = Vec::new();
    let (hook, language) = (wanted.hook.as_str(), wanted.language.as_str());
    take(&mut files, &format!("templates/{language}/common/"), "", wanted);
    take(&mut files, &format!("templates/{language}/{hook}/"), "", wanted);
    take(&mut files, &format!("templates/cases/{hook}/"), "cases/", wanted);
    take(&mut files, "wit/", "wit/", wanted);
    match wanted.language {
        Language::Rust => {
            take(&mut files, "sdk/", "witan/sdk/", wanted);
            files.push(("Cargo.toml".to_owned(), manifest(wanted)?.into_bytes()));
            // Cargo drops what is not needed here, and keeps the versions of the rest.
            files.push(("Cargo.lock".to_owned(), files::text("plugins/Cargo.lock")?.into()));
        }
        Language::C => files.extend(bindings::c(wanted.hook)?),
        Language::Go => files.extend(bindings::go(wanted.hook)?),
        // Its tool generates bindings of the WIT whenever it builds.
        Language::Python => {}
        Language::JavaScript => files.extend(bindings::javascript(wanted.hook)?),
    }
    // A dot at the beginning of a name would hide the template from whoever looks for it.
    files.iter_mut().filter(|(path, _)| path == "gitignore").for_each(|(path, _)| *path = ".gitignore".to_owned());
    Ok(files)
}

/// Adds the files whose names begin with `from`, below `to`.
fn take(files: &mut Vec<File>, from: &str, to: &str, wanted: &Wanted) {
    let found = files::below(from);
    files.extend(found.map(|(rest, text)| (format!("{to}{rest}"), filled(text, wanted).into_bytes())));
}

/// Replaces the names of what is wanted.
fn filled(text: &str, wanted: &Wanted) -> String {
    let (hook, language) = (wanted.hook.as_str(), wanted.language.as_str());
    let pinned = |package| Pin::of(package).map(|pin| pin.version).unwrap_or_default();
    let names = [
        ("@NAME@", wanted.name.as_str()),
        ("@HOOK@", hook),
        ("@LANGUAGE@", language),
        ("@COMPONENTIZE_JS@", pinned("@bytecodealliance/componentize-js")),
        ("@COMPONENTIZE_PY@", pinned("componentize-py")),
    ];
    names.into_iter().fold(text.to_owned(), |text, (name, value)| text.replace(name, value))
}

/// The manifest of a project in Rust: a package, which is also the root of a workspace with the settings of this repository's own plugins,
/// since the SDK's manifests refer to them.
fn manifest(wanted: &Wanted) -> Result<String> {
    let plugins = files::text("plugins/Cargo.toml")?;
    let workspace = plugins.find("[workspace]").context("find the workspace in plugins/Cargo.toml")?;
    let settings = between(&plugins[workspace..], "members = [", "]", r#""witan/sdk", "witan/sdk/worlds/*""#)?;
    let settings = between(&settings, r#"witan-plugin-sdk = { path = ""#, r#"""#, "witan/sdk")?;
    let package = filled(files::text("templates/rust/package.toml")?, wanted);
    Ok(format!("{package}\n{settings}"))
}

/// Replaces what is between `start` and the next `end`.
fn between(text: &str, start: &str, end: &str, with: &str) -> Result<String> {
    let (before, rest) = text.split_once(start).with_context(|| format!("find {start} in plugins/Cargo.toml"))?;
    let (_, after) = rest.split_once(end).with_context(|| format!("find the end of {start} in plugins/Cargo.toml"))?;
    Ok(format!("{before}{start}{with}{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(hook: Hook, language: Language) -> Wanted {
        Wanted { name: "my-plugin".to_owned(), hook, language }
    }

    #[test]
    fn every_project_has_source_cases_and_interfaces_and_no_path_into_this_repository() {
        let of = |language: Language| language.hooks().iter().map(move |hook| (*hook, language));
        for (hook, language) in Language::ALL.into_iter().flat_map(of) {
            let files = files(&wanted(hook, language)).unwrap();
            let has = |part: &str| files.iter().any(|(path, _)| path.starts_with(part));
            assert!(has("src/") && has("cases/") && has("wit/0.1.0/") && has("README.md"), "{hook} {language}");
            assert!(has("plugin.json") && has(".gitignore"), "{hook} {language}");
            let mut paths: Vec<&str> = files.iter().map(|(path, _)| path.as_str()).collect();
            paths.sort_unstable();
            let count = paths.len();
            paths.dedup();
            assert_eq!(paths.len(), count, "{hook} {language}: a file twice");
            for (path, text) in &files {
                let text = String::from_utf8_lossy(text);
                assert!(
                    !["@NAME@", "@HOOK@", "@LANGUAGE@", "@COMPONENTIZE"].iter().any(|name| text.contains(name)),
                    "{path}"
                );
                assert!(!text.contains(concat!(env!("CARGO_MANIFEST_DIR"), "/")), "{path}");
            }
        }
    }

    #[test]
    fn a_manifest_has_the_settings_of_our_own_plugins() {
        let manifest = manifest(&wanted(Hook::ConflictResolver, Language::Rust)).unwrap();
        for part in [
            "name = \"my-plugin\"",
            "members = [\"witan/sdk\", \"witan/sdk/worlds/*\"]",
            "witan-plugin-sdk = { path = \"witan/sdk\" }",
            "[profile.release]",
            "wit-bindgen = ",
        ] {
            assert!(manifest.contains(part), "{part} is not in\n{manifest}");
        }
    }
}
