//! The configuration as operators write it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::value::Span;
use super::*;

/// Section 12 of the document that the project started from, verbatim.
const SEED: &str = include_str!("tests/seed.yaml");

fn read(text: &str, environment: &[(&str, &str)], flags: &[Flag]) -> Result<Loaded, Problems> {
    let folder = tempfile::tempdir().expect("make a folder");
    let file = folder.path().join("config.yaml");
    std::fs::write(&file, text).expect("write the file");
    read_file(&file, environment, flags)
}

fn read_file(file: &Path, environment: &[(&str, &str)], flags: &[Flag]) -> Result<Loaded, Problems> {
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Loaded::read(Inputs { file: Some(file.to_owned()), environment, flags: flags.to_vec(), ..Inputs::default() })
}

fn refused(text: &str) -> String {
    match read(text, &[], &[]) {
        Ok(_) => panic!("accepted: {text}"),
        Err(problems) => problems.to_string(),
    }
}

#[test]
fn rates_and_leases_of_placement_changes_are_within_bounds() {
    for lease in ["1s", "61s"] {
        let message = refused(&format!("placement: {{leader_lease: {lease}}}\n"));
        assert!(message.contains("placement.leader_lease") && message.contains("2s to 60s"), "{message}");
    }
    let message = refused("placement: {copy_rate: 1KiB}\n");
    assert!(message.contains("placement.copy_rate") && message.contains("64KiB to 16GiB"), "{message}");
    let read = read("placement: {leader_lease: 2s, copy_rate: 0}\n", &[], &[]).expect("within bounds");
    assert_eq!(read.settings.placement.leader_lease.0, Duration::from_secs(2));
}

#[test]
fn the_documents_own_example_needs_only_what_security_demands() {
    let message = refused(SEED);
    assert!(message.contains("security.allow_anonymous: true"), "{message}");
    assert_eq!(message.lines().count(), 2, "{message}");
    let open = format!("{SEED}\nsecurity:\n  allow_anonymous: true\n");
    let loaded = read(&open, &[], &[]).unwrap_or_else(|problems| panic!("{problems}"));
    let settings = &loaded.settings;
    assert_eq!((settings.server.port, settings.database.max_connections), (50051, 50));
    let url = settings.database.address().expect("an address").expect("a database");
    assert_eq!(url.reveal(), "postgres://coordinator:secret@localhost:5432/pairdb_metadata");
    let idle: Vec<&str> = loaded.notes.iter().map(|note| note.key.as_str()).collect();
    assert!(idle.contains(&"redis.min_idle_conns") && idle.contains(&"hash_ring.update_interval"), "{idle:?}");
}

#[test]
fn later_sources_override_earlier_ones() {
    let text = "server: {port: 1000, node_id: of-file, shutdown_timeout: 1s}\n";
    let environment =
        [("WITAN_SERVER__PORT", "2000"), ("WITAN_SERVER__NODE_ID", "of-environment"), ("WITAN_OTHER", "x")];
    let flags = [Flag { name: "--listen", key: "server.port", value: "3000".to_owned() }];
    let loaded = read(text, &environment, &flags).unwrap_or_else(|problems| panic!("{problems}"));
    let server = &loaded.settings.server;
    assert_eq!((server.port, server.node_id.as_str()), (3000, "of-environment"));
    assert_eq!(server.shutdown_timeout, Span(std::time::Duration::from_secs(1)));
    assert_eq!(server.host, "127.0.0.1");
    let source = |path: &str| loaded.source(path).to_string();
    assert_eq!(source("server.port"), "flag --listen");
    assert_eq!(source("server.node_id"), "environment WITAN_SERVER__NODE_ID");
    assert_eq!((source("server.shutdown_timeout").as_str(), source("server.host").as_str()), ("file", "default"));
}

#[test]
fn all_errors_are_reported_at_once() {
    let text = "server:\n  prot: 50051\n  shutdown_timeout: 30\n  node_id: 7\nconsistency:\n  default_level: quorom\n\
                loging:\n  level: info\nmetrics: 9090\nsecurity:\n  toknes: true\n";
    let message = refused(text);
    for part in [
        "config.yaml: server.prot: is not a key; did you mean server.port?",
        "server.shutdown_timeout: 30 has no unit",
        "server.node_id: is text: write it in quotes",
        "did you mean quorum?",
        "loging: is not a key; did you mean logging?",
        "metrics: is a section",
        "security.toknes: is not a key; did you mean security.tokens?",
    ] {
        assert!(message.contains(part), "{part} in:\n{message}");
    }
}

#[test]
fn the_environment_is_checked_like_the_file() {
    let wrong = [("WITAN_SERVER__PROT", "1"), ("WITAN_SERVER__PORT", "many"), ("WITAN_METRICS__ENABLED", "yes")];
    let message = read("", &wrong, &[]).err().expect("refused").to_string();
    assert!(
        message.contains("WITAN_SERVER__PROT: is not a variable of ours; did you mean WITAN_SERVER__PORT?"),
        "{message}"
    );
    assert!(message.contains("WITAN_SERVER__PORT: \"many\" is not a whole number"), "{message}");
    assert!(message.contains("WITAN_METRICS__ENABLED: \"yes\" is neither true nor false"), "{message}");
    let nodes = [("WITAN_STORAGE_NODES", "a=h:1,b=[::1]:2"), ("WITAN_REDIS__ADDRESSES", "r1:1, r2:2")];
    let loaded = read("", &nodes, &[]).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(loaded.settings.storage_nodes.len(), 2);
    assert_eq!(loaded.settings.redis.addresses, ["r1:1", "r2:2"]);
}

#[test]
fn contradicting_keys_of_redis_are_refused() {
    for wrong in [
        "{url: 'redis://r:6379', tls: true}",
        "{url: 'REDIS://r:6379', tls: true}",
        "{url: 'valkey://r:6379', tls: true}",
        "{addresses: ['redis://r:6379', r:6380], tls: true}",
    ] {
        let message = refused(&format!("redis: {wrong}\n"));
        assert!(message.contains("write rediss://"), "{message}");
    }
    let message = refused("redis: {url: 'redis://localhost:6379', db: 3}\n");
    assert!(message.contains("redis.db: is 3") && message.contains("redis://host:6379/3"), "{message}");
    for right in [
        "{url: 'rediss://r:6379', tls: true}",
        "{url: 'REDISS://r:6379', tls: true}",
        "{addresses: ['r:6379'], tls: true, db: 3}",
    ] {
        read(&format!("redis: {right}\n"), &[], &[]).unwrap_or_else(|problems| panic!("{right}: {problems}"));
    }
}

#[test]
fn the_grace_of_tombstones_is_longer_than_a_write_may_be_repeated() {
    let message = refused("healing: {tombstone_grace: 24h}\n");
    for part in ["healing.tombstone_grace", "86400s", "use at least 25h"] {
        assert!(message.contains(part), "{part} in {message}");
    }
    let loaded = read("healing: {tombstone_grace: 25h}\n", &[], &[]).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(loaded.settings.healing.tombstone_grace.0, witan_kernel::limit::LEAST_GRACE);
}

#[test]
fn nothing_shows_a_secret() {
    let text = "database: {host: localhost, password: hunter2}\nredis: {url: 'redis://:hunter2@localhost'}\n";
    let loaded = read(text, &[], &[]).unwrap_or_else(|problems| panic!("{problems}"));
    let shown = format!("{:?} {}", loaded.settings, serde_json::to_string(&loaded.settings).expect("JSON"));
    assert!(!shown.contains("hunter2") && shown.contains("***"), "{shown}");
    for wrong in ["database: {password: [hunter2]}", "database:\n  password: \"hunter2\n", "database: {url: hunter2}"] {
        let message = refused(wrong);
        assert!(!message.contains("hunter2"), "{message}");
    }
}

#[test]
fn secrets_come_from_files_that_must_be_there() {
    let folder = tempfile::tempdir().expect("make a folder");
    let file = folder.path().join("password");
    let text = format!("database: {{host: localhost, password_file: {}}}\n", file.display());
    let message = refused(&text);
    assert!(message.contains("database.password_file") && message.contains("create the file"), "{message}");
    std::fs::write(&file, "p@ss/word\n").expect("write");
    let loaded = read(&text, &[], &[]).unwrap_or_else(|problems| panic!("{problems}"));
    let url = loaded.settings.database.address().expect("an address").expect("a database");
    assert_eq!(url.reveal(), "postgres://witan:p%40ss%2Fword@localhost:5432/witan");
}

/// Nobody writes to it: whoever opens it waits for ever.
#[test]
fn a_secret_in_a_fifo_is_refused_and_not_waited_for() {
    let folder = tempfile::tempdir().expect("make a folder");
    let fifo = folder.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().expect("run mkfifo").success());
    let fifo = fifo.display();
    let texts = [
        ("database.password_file", format!("database: {{host: localhost, password_file: {fifo}}}\n")),
        ("security.nodes.shared_secret_file", format!("security: {{nodes: {{shared_secret_file: {fifo}}}}}\n")),
    ];
    for (key, text) in texts {
        let (answer, answered) = std::sync::mpsc::channel();
        std::thread::spawn(move || answer.send(refused(&text)));
        let message = answered.recv_timeout(std::time::Duration::from_secs(60)).expect("it is not waited for");
        assert!(message.contains(key) && message.contains("is a FIFO"), "{message}");
    }
}

#[test]
fn the_database_on_another_machine_needs_a_word_on_tls() {
    for text in ["database: {host: db}", "database: {url: 'postgres://u:p@db/witan'}"] {
        let message = refused(text);
        assert!(message.contains("set database.ssl_mode to verify-full"), "{message}");
    }
    let strict =
        ["database: {host: db, ssl_mode: verify-full}", "database: {url: 'postgres://u:p@db/w?sslmode=verify-full'}"];
    for text in strict {
        let loaded = read(text, &[], &[]).unwrap_or_else(|problems| panic!("{problems}"));
        assert!(loaded.notes.iter().all(|note| note.key != "database.ssl_mode"));
        let url = loaded.settings.database.address().expect("an address").expect("a database");
        assert!(url.reveal().ends_with("?sslmode=verify-full"));
    }
    let lax = read("database: {host: db, ssl_mode: require}", &[], &[]).unwrap_or_else(|problems| panic!("{problems}"));
    assert!(lax.notes.iter().any(|note| note.key == "database.ssl_mode"));
    // On this machine no mode is needed.
    for host in ["localhost", "127.0.0.1", "::1", "/run/postgresql"] {
        let local = format!("database: {{host: '{host}'}}");
        read(&local, &[], &[]).unwrap_or_else(|problems| panic!("{problems}"));
    }
}

#[test]
fn of_two_ways_to_say_the_same_the_stronger_source_holds() {
    let text = "database: {host: localhost, url: 'postgres://localhost/w'}";
    assert!(refused(text).contains("means the same as database.url"));
    let environment = [("WITAN_DATABASE__URL", "postgres://localhost/other")];
    let loaded = read("database: {host: localhost}", &environment, &[]).unwrap_or_else(|problems| panic!("{problems}"));
    let url = loaded.settings.database.address().expect("an address").expect("a database");
    assert_eq!(url.reveal(), "postgres://localhost/other");
}

#[test]
fn hostile_files_are_refused_and_take_nothing_with_them() {
    let deep = "[".repeat(100_000);
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n\
                d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n\
                g: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]\nh: [*g,*g,*g,*g,*g,*g,*g,*g,*g]\n";
    let large = "#".repeat(2 << 20);
    let twice = "server: {port: 1}\nserver: {port: 2}\n";
    for text in [deep.as_str(), bomb, &large, twice, "- a\n- b\n", "just text", "server: [1]", "\u{0}"] {
        assert!(refused(text).len() < 4096, "a long message");
    }
    let missing = Loaded::read(Inputs { file: Some(PathBuf::from("/nonexistent/w.yaml")), ..Inputs::default() });
    assert!(missing.err().expect("refused").to_string().contains("/nonexistent/w.yaml"));
    for empty in ["", "\n# nothing\n", "server:\n", "server:\n  port:\n", "---\n"] {
        read(empty, &[], &[]).unwrap_or_else(|problems| panic!("{empty:?}: {problems}"));
    }
}

/// The paths of all leaves.
fn leaves(value: &Value, above: &str, into: &mut Vec<String>) {
    match value {
        Value::Object(entries) if !entries.is_empty() => {
            for (name, value) in entries {
                let path = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
                leaves(value, &path, into);
            }
        }
        _ => into.push(above.to_owned()),
    }
}

#[test]
fn the_table_and_the_types_know_the_same_keys() {
    let mut layers = Layers::defaults();
    let flags = keys::KEYS.iter().map(|key| Flag { name: "--x", key: key.path, value: key.example().to_owned() });
    layers.flags(&flags.collect::<Vec<_>>());
    assert_eq!(layers.problems, []);
    let settings: Settings = serde_path_to_error::deserialize(layers.nested()).expect("the types take every key");
    let mut typed = Vec::new();
    leaves(&serde_json::to_value(&settings).expect("JSON"), "", &mut typed);
    let mut table: Vec<&str> = keys::KEYS.iter().map(|key| key.path).collect();
    typed.sort();
    table.sort_unstable();
    assert_eq!(typed, table, "document each key in host/config/keys/table.rs");
}

#[test]
fn the_types_take_every_choice_of_the_table() {
    for key in keys::KEYS {
        let keys::Kind::Choice(choices) = key.kind else { continue };
        for choice in choices.iter().filter(|_| !key.path.starts_with("security.")) {
            let mut layers = Layers::defaults();
            layers.flags(&[Flag { name: "--x", key: key.path, value: (*choice).to_owned() }]);
            let settings: Result<Settings, _> = serde_path_to_error::deserialize(layers.nested());
            assert!(settings.is_ok(), "{} = {choice}: {:?}", key.path, settings.err());
        }
    }
}

#[test]
fn what_holds_is_shown_with_its_source_and_can_be_read_again() {
    let text = "server: {port: 1000}\ndatabase: {host: localhost, password: hunter2}\nstorage_nodes: [{id: a, host: h, port: 1}]\n";
    let loaded = read(text, &[("WITAN_METRICS__PORT", "2000")], &[]).unwrap_or_else(|problems| panic!("{problems}"));
    let shown = loaded.yaml();
    assert!(!shown.contains("hunter2"), "{shown}");
    let line = |start: &str| {
        let line = shown.lines().find(|line| line.trim_start().starts_with(start));
        line.unwrap_or_else(|| panic!("no {start} in\n{shown}")).to_owned()
    };
    assert!(line("port: 1000").ends_with("# file"));
    assert!(line("port: 2000").ends_with("# environment WITAN_METRICS__PORT"));
    let again = read(&shown, &[], &[]).unwrap_or_else(|problems| panic!("{problems}\n{shown}"));
    assert_eq!(again.settings.server, loaded.settings.server);
    assert_eq!(again.settings.storage_nodes, loaded.settings.storage_nodes);
}

#[test]
fn the_documentation_is_what_the_table_says() {
    let page = include_str!("../../docs/configuration.md");
    let (_, rest) = page.split_once("<!-- generated: witan config print --documented -->\n\n").expect("the first mark");
    let (generated, _) = rest.split_once("\n<!-- end -->").expect("the last mark");
    assert_eq!(generated.trim_end(), documented().trim_end(), "run: witan config print --documented");
}

#[test]
fn a_password_that_is_not_encoded_is_not_shown() {
    for password in ["p/w0rd", "p?w0rd", "p#w0rd", "100%w0rd", "12/w0rd", "p%2"] {
        for key in ["database", "redis"] {
            let scheme = if key == "redis" { "redis" } else { "postgres" };
            let message = refused(&format!("{key}: {{url: '{scheme}://me:{password}@db.example:5432/witan'}}\n"));
            assert!(message.contains("percent-encode"), "{key}: {password}: {message}");
            assert!(!message.contains("w0rd") && !message.contains(password), "{key}: {message}");
        }
    }
    for right in [
        "postgres://me:p%2Fw0rd@localhost:5432/witan",
        "postgres://localhost/witan?application_name=a@b",
        "postgres://[::1]:5432/witan?application_name=a@b",
        "postgres://me@localhost/witan",
    ] {
        read(&format!("database: {{url: '{right}'}}\n"), &[], &[])
            .unwrap_or_else(|problems| panic!("{right}: {problems}"));
    }
}
