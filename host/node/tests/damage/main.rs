//! Every file of a store, damaged: bits flipped, pages zeroed, cut off, missing, replaced by an older copy of itself or by another
//! file. A store that was damaged is refused, or fails when the damage is read, or has every acknowledged row; it never silently has
//! less.

mod written;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bytes::Bytes;
use witan_kernel::fault::{self, Fault};
use witan_node::engine::Engine;
use witan_node::engine::fjall::Fjall;
use written::{Dice, Written, copy, options, row, used, value, write_sparse};

const PAGE: u64 = 4096;

#[derive(Debug, Clone)]
enum Damage {
    Flip { at: u64, bit: u8 },
    Zero { page: u64 },
    Cut { to: u64 },
    Missing,
    Older(PathBuf),
    Other(PathBuf),
}

impl Damage {
    fn kind(&self) -> &'static str {
        match self {
            Self::Flip { .. } => "bit flipped",
            Self::Zero { .. } => "page zeroed",
            Self::Cut { .. } => "cut",
            Self::Missing => "missing",
            Self::Older(_) => "older copy",
            Self::Other(_) => "other file",
        }
    }

    /// Changes the file; false if it is the same as before.
    fn apply(&self, path: &Path) -> bool {
        let before = fs::read(path).unwrap();
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        match self {
            Self::Flip { at, bit } => file.write_all_at(&[before[*at as usize] ^ (1 << bit)], *at).unwrap(),
            Self::Zero { page } => {
                let length = PAGE.min(before.len() as u64 - page * PAGE);
                file.write_all_at(&vec![0; length as usize], page * PAGE).unwrap();
            }
            Self::Cut { to } => file.set_len(*to).unwrap(),
            Self::Missing => fs::remove_file(path).unwrap(),
            Self::Older(from) | Self::Other(from) => {
                fs::remove_file(path).unwrap();
                write_sparse(path, &fs::read(from).unwrap());
            }
        }
        fs::read(path).ok().as_ref() != Some(&before)
    }
}

fn files(folder: &Path, into: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for entry in entries {
        if entry.is_dir() { files(&entry, into) } else { into.push(entry) }
    }
}

/// The damages to one file that are tried.
fn damages(dice: &mut Dice, written: &Written, file: &Path, flips: u64, pages: u64) -> Vec<Damage> {
    let content = fs::read(file).unwrap();
    let used = used(&content) as u64;
    let mut all: Vec<Damage> = Vec::new();
    if used > 0 {
        all.extend((0..flips.min(used * 8)).map(|_| Damage::Flip { at: dice.below(used), bit: dice.below(8) as u8 }));
        let in_use = used.div_ceil(PAGE);
        all.extend((0..pages.min(in_use)).map(|n| {
            let page = if in_use <= pages { n } else { dice.below(in_use) };
            Damage::Zero { page }
        }));
        all.extend((0..pages.min(in_use)).map(|n| {
            let page = if in_use <= pages { n } else { dice.below(in_use) };
            Damage::Cut { to: page * PAGE }
        }));
    }
    all.push(Damage::Missing);
    let older = written.older.path().join("store").join(file.strip_prefix(written.path()).unwrap());
    if older.exists() {
        all.push(Damage::Older(older));
    }
    let mut siblings = Vec::new();
    files(file.parent().unwrap(), &mut siblings);
    let extension = file.extension();
    siblings.retain(|other| other != file && other.parent() == file.parent() && other.extension() == extension);
    all.extend(siblings.into_iter().take(1).map(Damage::Other));
    all
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// It was not opened, for this reason.
    Refused(String),
    /// Reading failed.
    ReadFailed(String),
    /// Everything is there.
    Harmless,
    /// Rows are missing or wrong without an error.
    Less(usize),
}

/// Opens and reads a store in a process of its own: engines may abort on files that they cannot make sense of.
fn judge(folder: &Path, written: &Written) -> Outcome {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["one_store_is_read", "--exact", "--ignored", "--nocapture"]).stderr(Stdio::null());
    child.env(FOLDER, folder).env(ACKNOWLEDGED, written.list());
    child.env(BELIEVED, if Fault::DamageBelieved.is_on() { "yes" } else { "no" });
    let output = child.output().unwrap();
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    let Some(outcome) = output.lines().find_map(|line| line.split_once(OUTCOME)) else {
        let stage = if output.contains(OPENED) { Outcome::ReadFailed } else { Outcome::Refused };
        return stage(ENDED.to_owned());
    };
    match outcome.1.split_once(' ') {
        Some(("refused", error)) => Outcome::Refused(error.to_owned()),
        Some(("failed", error)) => Outcome::ReadFailed(error.to_owned()),
        Some(("less", rows)) => Outcome::Less(rows.parse().unwrap()),
        _ => Outcome::Harmless,
    }
}

const FOLDER: &str = "WITAN_DAMAGE_FOLDER";
const ACKNOWLEDGED: &str = "WITAN_DAMAGE_ACKNOWLEDGED";
const BELIEVED: &str = "WITAN_DAMAGE_BELIEVED";
const OPENED: &str = "the store is open";
const ENDED: &str = "the process ended";
const OUTCOME: &str = "outcome: ";

#[test]
#[ignore = "the other half of `judge`, in a process of its own"]
fn one_store_is_read() {
    let folder = std::env::var(FOLDER).expect("a folder");
    let list = std::env::var(ACKNOWLEDGED).expect("a list");
    if std::env::var(BELIEVED).is_ok_and(|believed| believed == "yes") {
        fault::set(Some(Fault::DamageBelieved));
    }
    let engine = match Fjall::open(folder, options(8 << 20)) {
        Ok(engine) => engine,
        Err(error) => return println!("{OUTCOME}refused {error}"),
    };
    println!("{OPENED}");
    match read(&engine, &Written::listed(Path::new(&list))) {
        Outcome::Less(rows) => println!("{OUTCOME}less {rows}"),
        Outcome::ReadFailed(error) => println!("{OUTCOME}failed {error}"),
        _ => println!("{OUTCOME}harmless "),
    }
}

fn read(engine: &Fjall, written: &Written) -> Outcome {
    let (mut less, mut failed) = (0, None);
    for (row, value) in &written.acknowledged {
        match engine.get(row) {
            Ok(Some(found)) if found == *value => {}
            Ok(_) => less += 1,
            Err(error) => failed = Some(error.to_string()),
        }
    }
    match engine.note("identity") {
        Ok(found) if found == written.identity => {}
        Ok(_) => less += 1,
        Err(error) => failed = Some(error.to_string()),
    }
    let mut seen = BTreeMap::new();
    let walked = engine.walk(Bytes::new()..Bytes::from_static(&[0xff]), &mut |row, value| {
        seen.insert(row, value);
        true
    });
    match walked {
        Ok(()) if seen != written.acknowledged => less += 1,
        Ok(()) => {}
        Err(error) => failed = Some(error.to_string()),
    }
    match (less, failed) {
        (0, None) => Outcome::Harmless,
        (0, Some(error)) => Outcome::ReadFailed(error),
        (less, _) => Outcome::Less(less),
    }
}

/// Counts of outcomes by kind of damage: refused, read failed, harmless, less.
type Table = BTreeMap<(String, &'static str), [usize; 4]>;

/// The name of a file without its numbers, for the table.
fn group(path: &Path) -> String {
    let name = path.to_string_lossy();
    let parts = name.split('/').map(|part| {
        let plain: String = part.chars().filter(|c| !c.is_ascii_digit()).collect();
        if plain.is_empty() { "*".to_owned() } else { plain }
    });
    parts.collect::<Vec<_>>().join("/")
}

/// Tries the damages to the files whose names begin like this.
fn try_every_damage(written: &Written, names: &str, flips: u64, pages: u64) -> (Table, Vec<String>) {
    let mut dice = Dice(7);
    let (mut table, mut silent) = (Table::new(), Vec::new());
    let mut all = Vec::new();
    files(&written.path(), &mut all);
    let scratch = tempfile::tempdir().unwrap();
    for (number, file) in all.iter().enumerate() {
        let name = file.strip_prefix(written.path()).unwrap();
        if !name.to_string_lossy().starts_with(names) {
            continue;
        }
        for (attempt, damage) in damages(&mut dice, written, file, flips, pages).into_iter().enumerate() {
            let folder = scratch.path().join(format!("{number}-{attempt}"));
            copy(&written.path(), &folder, Some(file));
            let damaged = folder.join(name);
            if !damage.apply(&damaged) {
                continue;
            }
            let before = fs::read(&damaged).ok();
            let outcome = judge(&folder, written);
            let column = match &outcome {
                Outcome::Refused(_) => 0,
                Outcome::ReadFailed(_) => 1,
                Outcome::Harmless => 2,
                Outcome::Less(_) => 3,
            };
            table.entry((group(name), damage.kind())).or_default()[column] += 1;
            if let Outcome::Refused(why) | Outcome::ReadFailed(why) = &outcome
                && why == ENDED
            {
                println!("  the process ended at {}: {damage:?}: {outcome:?}", name.display());
            }
            match outcome {
                Outcome::Less(rows) => silent.push(format!("{}: {damage:?}: {rows} rows", name.display())),
                Outcome::Refused(error) if fs::read(&damaged).ok() != before => {
                    silent.push(format!("{}: {damage:?}: refused ({error}), but the file was changed", name.display()));
                }
                _ => {}
            }
            let _ = fs::remove_dir_all(&folder);
        }
    }
    (table, silent)
}

fn show(title: &str, table: &Table) -> [usize; 4] {
    let mut sum = [0; 4];
    println!("{title}: refused, read failed, harmless, silently less");
    for ((file, kind), counts) in table {
        println!("  {file:28} {kind:12} {counts:4?}");
        counts.iter().zip(&mut sum).for_each(|(count, sum)| *sum += count);
    }
    println!("  all of {}: {sum:?}", sum.iter().sum::<usize>());
    sum
}

/// How thoroughly: a number in `WITAN_DAMAGE` multiplies the number of places that are damaged.
fn thorough() -> u64 {
    std::env::var("WITAN_DAMAGE").ok().and_then(|factor| factor.parse().ok()).unwrap_or(1)
}

fn never_less(title: &str, written: &Written, names: &str, flips: u64, pages: u64) {
    let (table, silent) = try_every_damage(written, names, flips * thorough(), pages * thorough());
    assert!(show(title, &table).iter().sum::<usize>() > 0, "no file is called {names}");
    assert!(silent.is_empty(), "{} damages:\n{}", silent.len(), silent.join("\n"));
}

#[test]
fn a_damaged_young_store_never_silently_has_less() {
    never_less("young store", &Written::young(), "", 10, 4);
}

#[test]
fn a_damaged_grown_store_never_silently_has_less() {
    never_less("grown store", &Written::grown(), "", 10, 4);
}

#[test]
fn a_damaged_earlier_journal_is_never_silently_less() {
    never_less("earlier journal", &Written::sealed(), "0.jnl", 2, 1);
}

/// What a journal and the mark of a running store contain.
fn snapshot(folder: &Path) -> (Vec<u8>, Vec<u8>) {
    (fs::read(folder.join("0.jnl")).unwrap(), fs::read(folder.join("mark")).unwrap())
}

/// Power failures: everything that was acknowledged is on the disk, and of what was written afterwards any page may be missing, torn
/// or damaged. The mark may be older than the last acknowledgement. Every such store opens, with every acknowledged row.
#[test]
fn a_torn_end_is_no_damage() {
    let mut written = Written::new();
    let engine = written.reopened();
    let mut marks = Vec::new();
    for n in 0..40 {
        written.put(&engine, std::iter::once((row(n), value(n, 700))));
        marks.push(snapshot(&written.path()).1);
    }
    let acknowledged = used(&snapshot(&written.path()).0);
    for n in 40..60 {
        engine.write(vec![(row(n), Some(value(n, 700 + 150 * n as usize)))]).unwrap();
    }
    let (journal, _) = snapshot(&written.path());
    let (end, mut dice) = (used(&journal), Dice(11));
    assert!(end > acknowledged + 50_000, "{acknowledged} of {end}");
    for attempt in 0..40 * thorough() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("store");
        copy(&written.path(), &folder, None);
        let mut torn = journal.clone();
        match attempt % 4 {
            0 => torn[acknowledged + dice.below((end - acknowledged) as u64) as usize..].fill(0),
            1 => torn.truncate(acknowledged + dice.below((end - acknowledged) as u64) as usize),
            2 => (0..6).for_each(|_| torn[acknowledged + dice.below((end - acknowledged) as u64) as usize] ^= 0x40),
            _ => {
                for page in (acknowledged.div_ceil(4096)..end / 4096).filter(|_| dice.below(3) == 0) {
                    torn[page * 4096..(page + 1) * 4096].fill(0);
                }
            }
        }
        torn.resize(torn.len() + dice.below(3) as usize * 50_000, 0);
        write_sparse(&folder.join("0.jnl"), &torn);
        fs::write(folder.join("mark"), &marks[marks.len() - 1 - dice.below(3) as usize]).unwrap();
        let engine = Fjall::open(&folder, options(8 << 20)).unwrap_or_else(|error| panic!("{attempt}: {error}"));
        for (row, value) in &written.acknowledged {
            assert_eq!(engine.get(row).unwrap().as_ref(), Some(value), "{attempt}");
        }
        // It goes on from there.
        engine.write(vec![(row(99), Some(value(99, 100)))]).unwrap();
        engine.sync().unwrap();
        drop(engine);
        let engine = Fjall::open(&folder, options(8 << 20)).unwrap();
        assert_eq!(engine.get(&row(99)).unwrap(), Some(value(99, 100)));
        assert_eq!(engine.get(&row(0)).unwrap(), Some(value(0, 700)));
    }
}

/// A process that is killed leaves the mark of its last acknowledgement: damage to that is seen.
#[test]
fn damage_is_seen_up_to_the_last_acknowledgement() {
    let mut written = Written::new();
    let engine = written.reopened();
    for n in 0..20 {
        written.put(&engine, std::iter::once((row(n), value(n, 700))));
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("store");
        copy(&written.path(), &folder, None);
        let (mut journal, _) = snapshot(&written.path());
        let last = used(&journal) - 1;
        journal[last - n as usize * 30] ^= 1;
        fs::write(folder.join("0.jnl"), &journal[..=last]).unwrap();
        let refused = Fjall::open(&folder, options(8 << 20)).err().unwrap().to_string();
        for part in ["0.jnl", "damaged", "move the folder aside", "witan repair"] {
            assert!(refused.contains(part), "{part:?} is not in {refused}");
        }
        assert_eq!(fs::read(folder.join("0.jnl")).unwrap(), &journal[..=last], "the file is kept");
    }
}

/// A folder of a version that kept no mark is believed once, and gets one.
#[test]
fn a_folder_without_a_mark_is_believed_once() {
    let written = Written::young();
    let remove = |name: &str| fs::remove_file(written.path().join(name)).unwrap();
    remove("mark");
    remove("0.jnl.kept");
    assert_eq!(judge(&written.path(), &written), Outcome::Harmless);
    let journal = written.path().join("0.jnl");
    let bytes = fs::read(&journal).unwrap();
    assert!(Damage::Flip { at: used(&bytes) as u64 / 2, bit: 3 }.apply(&journal));
    assert!(matches!(judge(&written.path(), &written), Outcome::Refused(_)));
}

/// The process ended after the engine had removed a journal, and before the mark showed it.
#[test]
fn a_removed_journal_that_the_mark_still_shows_is_no_damage() {
    let written = Written::young();
    fs::remove_file(written.path().join("0.jnl")).unwrap();
    assert_eq!(judge(&written.path(), &written), Outcome::Harmless);
    fs::remove_file(written.path().join("0.jnl")).unwrap();
    fs::remove_file(written.path().join("0.jnl.kept")).unwrap();
    assert!(matches!(judge(&written.path(), &written), Outcome::Refused(_)));
}

/// With the checks left out, the same damages are found to lose rows.
#[test]
fn without_the_mark_damage_would_be_believed() {
    fault::set(Some(Fault::DamageBelieved));
    let written = Written::young();
    let (table, silent) = try_every_damage(&written, "", 6, 3);
    fault::set(None);
    let [.., less] = show("young store, believed", &table);
    assert!(less > 0 && !silent.is_empty());
}

/// Processes are killed while they write, while the engine changes journals and removes them: every acknowledged row is there.
#[test]
fn a_killed_process_is_no_damage() {
    let (folder, mut dice) = (tempfile::tempdir().unwrap(), Dice(3));
    let mut acknowledged = 0;
    for round in 0..5 {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["one_store_is_written", "--exact", "--ignored", "--nocapture"]).stdout(Stdio::piped());
        child.env(FOLDER, folder.path().join("store")).env(ACKNOWLEDGED, acknowledged.to_string());
        let mut child = child.spawn().unwrap();
        let out = child.stdout.take().unwrap();
        let lines = BufReader::new(out).lines().map_while(Result::ok);
        let mut outcomes = lines.filter_map(|line| line.strip_prefix(OUTCOME)?.parse::<u64>().ok());
        // Long enough for several journals. It goes on writing until the signal arrives.
        let before = outcomes.by_ref().take(15 + dice.below(30) as usize).last();
        assert!(before.is_some(), "round {round}: nothing was written");
        child.kill().unwrap();
        child.wait().unwrap();
        acknowledged = outcomes.last().or(before).map_or(acknowledged, |last| last + 1);
        let engine = Fjall::open(folder.path().join("store"), options(4 << 20)).unwrap();
        for n in 0..acknowledged {
            assert_eq!(engine.get(&row(n)).unwrap(), Some(value(n, 100)), "round {round}, row {n} of {acknowledged}");
        }
    }
    assert!(acknowledged > 0);
}

#[test]
#[ignore = "the other half of `a_killed_process_is_no_damage`"]
fn one_store_is_written() {
    let folder = std::env::var(FOLDER).expect("a folder");
    let from: u64 = std::env::var(ACKNOWLEDGED).expect("a number").parse().unwrap();
    let engine = Fjall::open(folder, options(4 << 20)).unwrap();
    let filler = value(from, 2 << 20);
    for n in from.. {
        let batch = vec![(Bytes::from_static(b"filler"), Some(filler.clone())), (row(n), Some(value(n, 100)))];
        engine.write(batch).unwrap();
        engine.sync().unwrap();
        println!("{OUTCOME}{n}");
    }
}
