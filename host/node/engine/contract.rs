//! The contract of [`Engine`] as a test that every implementation passes.

use bytes::Bytes;

use super::{Change, Engine};

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn set(row: &str, value: &str) -> Change {
    (bytes(row), Some(bytes(value)))
}

fn rows(engine: &dyn Engine, from: &str, to: &str, limit: usize) -> Vec<String> {
    let found = engine.scan(bytes(from)..bytes(to), limit).unwrap();
    found.into_iter().map(|(row, value)| String::from_utf8([&row[..], b"=", &value[..]].concat()).unwrap()).collect()
}

/// Checks the contract on the engine that `open` opens. `open` is called a second time, after the first engine was dropped, to
/// reopen the same data.
pub(crate) fn check(open: &mut dyn FnMut() -> Box<dyn Engine>) {
    let engine = open();
    assert_eq!(engine.get(b"a"), Ok(None));
    assert_eq!(engine.note("name"), Ok(None));

    engine.write(vec![set("b", "1"), set("a", "2"), set("c", "")]).unwrap();
    assert_eq!(engine.get(b"a"), Ok(Some(bytes("2"))), "seen before it is synced");
    assert_eq!(engine.get(b"c"), Ok(Some(Bytes::new())), "an empty value is a value");

    engine.write(vec![set("d", "1"), set("d", "2"), (bytes("c"), None), (bytes("e"), None)]).unwrap();
    assert_eq!(engine.get(b"c"), Ok(None));
    engine.write(Vec::new()).unwrap();
    engine.sync().unwrap();
    engine.sync().unwrap();

    assert_eq!(rows(&*engine, "a", "z", 10), ["a=2", "b=1", "d=2"], "in order, and the last change of a row wins");
    assert_eq!(rows(&*engine, "a", "d", 10), ["a=2", "b=1"], "the end is not part of a range");
    assert_eq!(rows(&*engine, "a", "z", 2), ["a=2", "b=1"]);
    assert_eq!(rows(&*engine, "z", "a", 2), Vec::<String>::new());

    let mut walked = Vec::new();
    let mut each = |row: Bytes, value: Bytes| {
        walked.push((row, value));
        walked.len() < 2
    };
    engine.walk(bytes("a")..bytes("z"), &mut each).unwrap();
    engine.walk(bytes("z")..bytes("a"), &mut |_, _| panic!("an empty range")).unwrap();
    assert_eq!(walked, [(bytes("a"), bytes("2")), (bytes("b"), bytes("1"))], "until it has seen enough");

    engine.write_noting(vec![set("noted", "1")], "beside", bytes("a row")).unwrap();
    assert_eq!((engine.get(b"noted"), engine.note("beside")), (Ok(Some(bytes("1"))), Ok(Some(bytes("a row")))));
    engine.write(vec![(bytes("noted"), None)]).unwrap();
    engine.set_note("name", bytes("first")).unwrap();
    engine.set_note("name", bytes("second")).unwrap();
    let large = Bytes::from(vec![7; 3 << 20]);
    engine.write(vec![(bytes("large"), Some(large.clone()))]).unwrap();
    engine.sync().unwrap();
    assert!(engine.usage().unwrap().bytes > 0);
    drop(engine);

    let engine = open();
    assert_eq!(engine.note("name"), Ok(Some(bytes("second"))));
    assert_eq!(engine.note("other"), Ok(None));
    assert_eq!(engine.get(b"large"), Ok(Some(large)));
    assert_eq!(rows(&*engine, "a", "e", 10), ["a=2", "b=1", "d=2"]);
    assert!((4..20).contains(&engine.approximate_keys()), "{}", engine.approximate_keys());
}
