//! Both embedded stores on a real file system that is really full: nothing acknowledged is lost, and with room they go on.
//!
//! The test runs itself again in a separate mount namespace. Where none can be created it fails, so that the behaviour on a full disk
//! is never left untested.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use witan_kernel::idempotency::{KEPT_MS, Name, Owner, RESPONSE_BYTES, Step, Stepped};
use witan_kernel::name::{TenantId, WriteId};
use witan_kernel::port::{Clock, Durability, IdempotencyStore, StoreError, TenantStore};
use witan_kernel::tenant::Tenant;
use witan_store::idempotency::EmbeddedIdempotency;
use witan_store::metadata::SqliteMetadata;

const INSIDE: &str = "WITAN_STORE_TEST_INSIDE";
const DISK: u64 = 100 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs the named test inside a namespace; true when this process is inside already.
fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let this = std::env::current_exe().expect("the path of this test");
    let ways: [&[&str]; 2] = [&["--mount"], &["--user", "--map-root-user", "--mount"]];
    let works = |way: &&&[&str]| {
        let tried = Command::new("unshare").args(**way).args(["mount", "-t", "tmpfs", "none", "/mnt"]).output();
        tried.is_ok_and(|tried| tried.status.success())
    };
    let way = ways.iter().find(works).expect("a small file system, mounted as root or in a user namespace");
    let mut again = Command::new("unshare");
    again.args(*way).arg(this).args(["--exact", test, "--nocapture"]).env(INSIDE, "1");
    assert!(again.status().expect("unshare runs").success(), "{test} failed inside its namespace");
    false
}

/// A small file system with ballast that leaves little room.
fn small_disk(folder: &Path, left: usize) {
    let size = format!("size={DISK}");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(folder).status();
    assert!(mounted.expect("mount runs").success());
    std::fs::write(folder.join("ballast"), vec![1; DISK as usize - left]).expect("room for the ballast");
}

#[derive(Clone)]
struct Real(Instant);

impl Clock for Real {
    fn wall_micros(&self) -> u64 {
        1_800_000_000_000_000 + self.monotonic_micros()
    }

    fn monotonic_micros(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

fn name(of: u32) -> Name {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&of.to_be_bytes());
    Name(bytes)
}

async fn carry_out(store: &EmbeddedIdempotency, of: u32) -> Result<(), StoreError> {
    let owner = Owner([1; 16]);
    let reserve = Step::Reserve { owner, write_id: WriteId([1; 16]), started: 1, lease_ms: 60_000, kept_ms: KEPT_MS };
    let Stepped::Reserved { fence, .. } = store.step(name(of), reserve).await? else { return Ok(()) };
    // What compresses well fills no disk.
    let response: Vec<u8> = (0..RESPONSE_BYTES as u64)
        .map(|at| ((at + u64::from(of)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8)
        .collect();
    store.step(name(of), Step::Done { owner, fence, response: response.into(), kept_ms: KEPT_MS }).await.map(drop)
}

#[tokio::test]
async fn the_idempotency_store_goes_on_when_there_is_room_again() {
    if !inside("the_idempotency_store_goes_on_when_there_is_room_again") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    small_disk(folder.path(), 20 << 20);
    let open = || EmbeddedIdempotency::open(folder.path().join("store"), Real(Instant::now()), Durability::Sync);
    let store = open().expect("opens");
    let mut done = Vec::new();
    let mut refused = 0;
    for of in 0..2000 {
        match carry_out(&store, of).await {
            Ok(()) => done.push(of),
            Err(StoreError::Full(_)) => refused += 1,
            Err(other) => panic!("{other}"),
        }
        if refused > 3 {
            break;
        }
    }
    assert!(refused > 3 && done.len() > 50, "{refused} refused, {} done", done.len());
    assert!(store.is_full());
    std::fs::remove_file(folder.path().join("ballast")).expect("removed");
    let start = Instant::now();
    while let Err(error) = carry_out(&store, 10_000).await {
        assert!(start.elapsed() < PATIENCE, "there is room, and still: {error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    done.push(10_000);
    assert!(!store.is_full());
    for again in 0..2 {
        let store = if again == 0 { store.clone() } else { open().expect("opens again") };
        for of in &done {
            let other = Step::Reserve {
                owner: Owner([2; 16]),
                write_id: WriteId([1; 16]),
                started: 2,
                lease_ms: 1,
                kept_ms: KEPT_MS,
            };
            let stepped = store.step(name(*of), other).await;
            assert!(matches!(stepped, Ok(Stepped::Done { .. })), "{of}: {stepped:?}");
        }
        store.close().await;
    }
}

#[tokio::test]
async fn the_metadata_store_goes_on_when_there_is_room_again() {
    if !inside("the_metadata_store_goes_on_when_there_is_room_again") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    small_disk(folder.path(), 3 << 20);
    let metadata = SqliteMetadata::open(folder.path().join("metadata.db")).await.expect("opens");
    let tenant = |of: u32| {
        let id = TenantId::new(format!("{of:0>256}")).expect("valid");
        Tenant::with_defaults(id, 3, 1)
    };
    let mut created = 0;
    let stepped = loop {
        match metadata.create_tenant(tenant(created)).await {
            Ok(_) => created += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(&stepped, StoreError::Full(_)), "{stepped}");
    assert!(created > 100, "{created}");
    std::fs::remove_file(folder.path().join("ballast")).expect("removed");
    metadata.create_tenant(tenant(created)).await.expect("there is room");
    metadata.close().await;
    let metadata = SqliteMetadata::open(folder.path().join("metadata.db")).await.expect("opens again");
    for of in 0..=created {
        assert_eq!(metadata.tenant(&tenant(of).id).await, Ok(Some(tenant(of))));
    }
}
