//! The resolvers of this repository as clients see them: siblings made by concurrent writes, one value for readers, a context that settles
//! them; and the pages about them, whose commands are run as they are written.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use tonic::Code;
use witan_wire::v1;

use crate::harness::{Dev, Plugins, Process, Refusal, read, write};

/// A resolver with values that are written at the same time.
struct Case {
    plugin: &'static str,
    configuration: &'static str,
    values: &'static [&'static str],
    /// What readers get.
    merged: &'static str,
    /// A value that the resolver does not merge.
    other: &'static [u8],
}

const CASES: [Case; 5] = [
    Case {
        plugin: "counter",
        configuration: "",
        values: &[r#"{"phone":3}"#, r#"{"laptop":{"up":5,"down":2}}"#, r#"{"phone":2,"tablet":1}"#],
        merged: r#"{"laptop":{"up":5,"down":2},"phone":3,"tablet":1}"#,
        other: b"3",
    },
    Case {
        plugin: "add-wins-set",
        configuration: "",
        values: &[
            r#"{"elements":{"milk":{"a":1}},"seen":{"a":1}}"#,
            r#"{"elements":{},"seen":{"a":1}}"#,
            r#"{"elements":{"milk":{"b":1}},"seen":{"b":1}}"#,
        ],
        merged: r#"{"elements":{"milk":{"b":1}},"seen":{"a":1,"b":1}}"#,
        other: br#"{"elements":{"milk":{"a":2}},"seen":{"a":1}}"#,
    },
    Case {
        plugin: "register-map",
        configuration: "",
        values: &[
            r#"{"email":{"value":"old","time":1},"name":{"value":"Ada","time":1}}"#,
            r#"{"email":{"value":"new","time":3}}"#,
            r#"{"name":{"time":2}}"#,
        ],
        merged: r#"{"email":{"value":"new","time":3},"name":{"time":2}}"#,
        other: br#"{"email":"new"}"#,
    },
    Case {
        plugin: "newest-field",
        configuration: "field = at",
        values: &[r#"{"at":9, "v":1}"#, r#"{"at":10.5, "v":2}"#, r#"{"at":-11, "v":3}"#],
        merged: r#"{"at":10.5, "v":2}"#,
        other: br#"{"at":"10"}"#,
    },
    Case {
        plugin: "text-lines",
        configuration: "",
        values: &["b\na\n", "c", "a\r\n"],
        merged: "a\nb\nc\n",
        other: b"\xff",
    },
];

#[tokio::test]
async fn concurrent_values_are_read_as_one_and_the_context_of_the_read_settles_them() {
    let dev = Dev::start().await;
    let (api, plugins) = (dev.api(), Plugins::new(dev.address()));
    for Case { plugin, configuration, values, merged, other } in CASES {
        api.siblings_tenant(plugin).await;
        for value in values {
            api.write(write(plugin, "k", *value)).await.expect("write");
        }
        let found = api.read(read(plugin, "k")).await.expect("read");
        assert_eq!(
            (found.siblings.len(), &*found.resolved_by),
            (values.len(), "native"),
            "{plugin}: nobody merges yet"
        );

        let digest = plugins.upload(plugin).await;
        plugins.bind_with(plugin, "conflict-resolver", &digest, configuration).await.expect("bind");
        let found = api.read(read(plugin, "k")).await.expect("read");
        assert_eq!(String::from_utf8_lossy(&found.value), merged, "{plugin}");
        assert!(found.siblings.is_empty() && found.resolved_by == format!("{plugin}@{}", &digest[..12]), "{found:?}");

        let settled = v1::WriteKeyValueRequest { context: found.context, ..write(plugin, "k", merged) };
        api.write(settled).await.expect("write with the context");
        plugins.bind(plugin, "conflict-resolver", "").await.expect("unbind");
        let (left, context) = api.values(read(plugin, "k")).await.expect("read");
        assert_eq!(left, [merged], "{plugin}: nothing else is stored");

        // What it cannot merge is kept beside the rest.
        api.write(write(plugin, "k", other)).await.expect("write");
        plugins.bind_with(plugin, "conflict-resolver", &digest, configuration).await.expect("bind again");
        let found = api.read(read(plugin, "k")).await.expect("read");
        assert_eq!(found.siblings.len(), 2, "{plugin}: {found:?}");
        assert!(found.siblings.iter().any(|sibling| sibling.value == other), "{plugin}: {found:?}");
        let settled = v1::WriteKeyValueRequest { context, ..write(plugin, "k", values[0]) };
        api.write(settled).await.expect("write with the earlier context");
        let found = api.read(read(plugin, "k")).await.expect("read");
        assert_eq!(found.siblings.len(), 2, "{plugin}: the write had not seen the other value: {found:?}");
    }
}

#[tokio::test]
async fn a_configuration_that_a_resolver_does_not_understand_is_refused() {
    let dev = Dev::start().await;
    dev.api().siblings_tenant("t").await;
    let plugins = Plugins::new(dev.address());
    let (digest, counter) = (plugins.upload("newest-field").await, plugins.upload("counter").await);
    for (plugin, configuration, said) in [
        (&digest, "field = ", "use the name of a field, or a JSON pointer"),
        (&digest, "field = /a~b", "write ~0 for ~"),
        (&digest, "missing = newest", "use keep-all or oldest"),
        (&digest, "by = time", "is not known"),
        (&counter, "field = a", "takes no configuration"),
    ] {
        let bound = plugins.bind_with("t", "conflict-resolver", plugin, configuration).await;
        let refusal = Refusal::from(bound.expect_err("refused"));
        assert!(refusal.message.contains(said), "{configuration}: {refusal:?}");
        assert_ne!(refusal.code, Code::Internal);
    }
    let bound = v1::ListBindingsRequest { tenant_id: "t".to_owned() };
    let bound = plugins.client().list_bindings(bound).await.expect("list").into_inner();
    assert!(bound.bindings.is_empty(), "{bound:?}");
}

/// Before a page's first command: one that fails ends the script and is printed.
const PROLOGUE: &str = concat!("set -Eeu\n", r#"trap 'echo "\`$BASH_COMMAND\` ended with $?" >&2' ERR"#, "\n");

/// The blocks of commands of a page, each with the output that the page shows for it, if any.
fn blocks(page: &str) -> Vec<(String, Option<String>)> {
    let mut blocks: Vec<(String, Option<String>)> = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let Some(info) = line.strip_prefix("```") else { continue };
        let content: String =
            lines.by_ref().take_while(|line| !line.starts_with("```")).map(|line| format!("{line}\n")).collect();
        match info {
            "sh" => blocks.push((content, None)),
            "text" => blocks.last_mut().expect("output follows commands").1 = Some(content),
            _ => {}
        }
    }
    blocks
}

/// Runs the commands of a page in a new folder and compares what they print with what the page shows.
fn run_page(page: &Path, endpoint: &str) {
    let text = fs::read_to_string(page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
    let blocks = blocks(&text);
    let folder = tempfile::tempdir().expect("make a folder");
    let bin = folder.path().join("bin");
    fs::create_dir_all(folder.path().join("target")).expect("make a folder");
    fs::create_dir(&bin).expect("make a folder");
    symlink(Process::witan().get_program(), bin.join("witan")).expect("link the program");
    symlink(Plugins::folder(), folder.path().join("target/plugins")).expect("link the plugins");

    let commands = blocks.iter().enumerate().map(|(at, (commands, _))| format!("{{\n{commands}}} >{at}.out\n"));
    let script = PROLOGUE.to_owned() + &commands.collect::<String>();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(bin).chain(std::env::split_paths(&path))).expect("a search path");
    let mut bash = Command::new("bash");
    bash.args(["-c", &script]).current_dir(folder.path()).stdin(Stdio::null());
    bash.env("PATH", path).env("WITAN_ENDPOINT", endpoint).env("WITAN_TIMEOUT", "60s").env_remove("RUST_LOG");
    let output = bash.output().expect("run bash");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} does not work as written: {said}", page.display());

    let shown = blocks.iter().enumerate().filter_map(|(at, (_, shown))| Some((at, shown.as_ref()?)));
    let mut compared = 0;
    for (at, shown) in shown {
        let printed = fs::read_to_string(folder.path().join(format!("{at}.out"))).expect("an output");
        assert_eq!(printed.trim_end(), shown.trim_end(), "{}, after\n{}", page.display(), blocks[at].0);
        compared += 1;
    }
    assert!(compared >= 4, "{} shows what its commands print", page.display());
}

#[tokio::test]
async fn the_pages_about_resolvers_work_as_written() {
    let dev = Dev::start().await;
    let endpoint = format!("http://{}", dev.address());
    let pages = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/resolvers");
    for Case { plugin, .. } in CASES {
        let (page, endpoint) = (pages.join(format!("{plugin}.md")), endpoint.clone());
        tokio::task::spawn_blocking(move || run_page(&page, &endpoint)).await.expect("the page");
    }
    let count = fs::read_dir(&pages).expect("the pages").count();
    assert_eq!(count, CASES.len() + 1, "every page but the overview is run");
}
