//! Clients that mean harm: a coordinator's memory stays within a bound, another client is served all the while, and SIGTERM
//! ends the server in time with all of them attached.

mod attack;
mod friend;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use witan_wire::v1::session_request::Operation;
use witan_wire::v1::session_response::Result as Outcome;

use crate::harness::{Dev, PATIENCE, Process, get, write};
use attack::{HEALTH, Half, WRITE, continuation_flood, half_sent, rapid_resets, wordless};
use friend::Friend;

/// `witan dev` gives what is under way ten seconds, and the machine may be busy.
const ENDS_WITHIN: Duration = Duration::from_secs(25);

/// A cluster under attack, and what it was like before.
struct Target {
    dev: Dev,
    friend: Friend,
    before_mib: u64,
}

impl Target {
    async fn start() -> Self {
        let dev = Dev::start_with_files(FILES).await;
        dev.api().tenant("t", |_| {}).await;
        let friend = Friend::start(dev.address());
        friend.served(20).await;
        let before_mib = peak_mib(&dev);
        Self { dev, friend, before_mib }
    }

    fn address(&self) -> SocketAddr {
        self.dev.address()
    }

    /// The friend is served, the memory has grown by so much at most, and the server ends in time. `attached` is whoever
    /// is still connected.
    async fn withstands<T>(mut self, what: &str, most_mib: u64, attached: T) {
        self.friend.served(20).await;
        let grown = peak_mib(&self.dev).saturating_sub(self.before_mib);
        let (status, _) = get(self.dev.admin(), "/livez").await.expect("HTTP is served, too");
        assert_eq!(status, 200);
        let told = self.friend.end().await;
        let began = Instant::now();
        self.dev.process().signal("TERM");
        let status = self.dev.process().ended().await;
        let took = began.elapsed();
        drop(attached);
        println!("{what}: {grown} MiB more (at most {most_mib}), {told}, ended after {took:?}");
        assert!(grown <= most_mib, "{what}: the memory grew by {grown} MiB");
        assert!(status.success() && took < ENDS_WITHIN, "{what}: {status} after {took:?}");
    }
}

/// Files that a process of these tests may open: a crowd's connections, and its own.
const FILES: u32 = 16_384;
const CROWD: usize = 10_000;

const DEADLINE_EXCEEDED: u32 = 4;
const RESOURCE_EXHAUSTED: u32 = 8;

/// The most memory that a process has had, in MiB.
fn peak_mib(dev: &Dev) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", dev.id())).expect("the process is there");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("its peak");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_reset_at_once() {
    let target = Target::start().await;
    let resets = rapid_resets(target.address(), 16, 5000).await;
    println!("{resets} calls were reset");
    target.withstands("rapid reset", 300, ()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_without_an_end() {
    const MOST: usize = 64 << 20;
    let target = Target::start().await;
    for attempt in 0..50 {
        let sent = continuation_flood(target.address(), MOST).await;
        assert!(sent < MOST, "attempt {attempt}: the server took {sent} bytes of headers");
    }
    target.withstands("header flood", 100, ()).await;
}

/// Connections that say nothing, or only how HTTP/2 begins and not all of it, are closed; calls whose message does not come
/// end with a deadline.
#[tokio::test(flavor = "multi_thread")]
async fn the_slow_and_the_silent() {
    let target = Target::start().await;
    let silent = wordless(target.address(), 1000, b"").await;
    let stammering = wordless(target.address(), 200, b"PRI * HTTP/2.0").await;
    let mut half = join_all((0..10).map(|_| half_sent(target.address(), WRITE, 100, 1 << 20, 1000))).await;
    target.friend.served(20).await;
    for mut stream in silent.into_iter().chain(stammering) {
        closed(&mut stream).await;
    }
    let mut told = Vec::new();
    for Half { statuses, .. } in &mut half {
        for status in statuses.drain(..) {
            told.push(tokio::time::timeout(PATIENCE, status).await.expect("in time").expect("told"));
        }
    }
    // Some were too many at once, the others had their time.
    assert!(told.iter().all(|status| [DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED].contains(status)), "{told:?}");
    assert!(told.contains(&DEADLINE_EXCEEDED));
    let attached = wordless(target.address(), 500, b"").await;
    target.withstands("slow and silent", 500, (half, attached)).await;
}

/// More calls than there may be half sent altogether, all of a kind that anybody may make: they are refused among themselves, and neither
/// calls with a purpose nor a session that is open notice.
#[tokio::test(flavor = "multi_thread")]
async fn probes_that_never_end() {
    let target = Target::start().await;
    let mut session = target.dev.api().session().await;
    let half = join_all((0..31).map(|_| half_sent(target.address(), HEALTH, 1000, 10, 5))).await;
    target.friend.served(20).await;
    let answer = session.within(PATIENCE, Operation::Write(write("t", "session", "goes on"))).await;
    assert!(matches!(answer, Outcome::Write(_)), "{answer:?}");
    target.withstands("probes without an end", 800, half).await;
}

async fn closed(stream: &mut TcpStream) {
    let mut words = [0; 64];
    // What is said before, and whether with a farewell or a reset, is all the same.
    let ends = async { while matches!(stream.read(&mut words).await, Ok(1..)) {} };
    tokio::time::timeout(PATIENCE, ends).await.expect("the server closes who says nothing");
}

/// 128 messages of 15 MiB, none of them complete: two GiB, if the server kept them.
#[tokio::test(flavor = "multi_thread")]
async fn giants() {
    let target = Target::start().await;
    let half = join_all((0..16).map(|_| half_sent(target.address(), WRITE, 8, 15 << 20, (15 << 20) - 1))).await;
    target.friend.served(20).await;
    target.withstands("giant messages", 600, half).await;
}

/// Ten thousand connections that have said how HTTP/2 begins and then stay: as many as the server takes. Whoever comes
/// after them is served, for those that say nothing make room.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_connections() {
    let target = Target::start().await;
    let folder = tempfile::tempdir().expect("make a folder");
    let mut command = std::process::Command::new(std::env::current_exe().expect("this program"));
    command.args(["hostile::crowd_process", "--exact", "--ignored", "--nocapture"]);
    command.env("WITAN_CROWD", target.address().to_string());
    let mut crowd = Process::start("crowd", Process::with_files(&command, FILES), folder.path());
    crowd.ready().await;
    assert_eq!(crowd.fact("connections"), CROWD.to_string());
    target.friend.newcomers(5).await;
    target.withstands("ten thousand connections", 800, crowd).await;
}

/// The crowd: started by its test as a process of its own.
#[tokio::test]
#[ignore = "run by ten_thousand_connections, in a process of its own"]
async fn crowd_process() {
    let Ok(address) = std::env::var("WITAN_CROWD") else { return };
    let address: SocketAddr = address.parse().expect("an address");
    let crowd = wordless(address, CROWD, attack::PREFACE).await;
    // Behind whatever the test runner has begun to say.
    println!("\nready connections={}", crowd.len());
    tokio::time::sleep(10 * PATIENCE).await;
    drop(crowd);
}
