//! Malicious clients: the server's memory stays bounded, another client is served meanwhile, and SIGTERM stops the server in
//! time with all of them connected.

mod attack;
mod bomb;
mod busy;
mod folder;
mod friend;
mod heavy;
mod kept;
mod shares;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use witan_wire::v1::session_request::Operation;
use witan_wire::v1::session_response::Result as Outcome;
use witan_wire::v1::{DeleteTenantRequest, ListKeysRequest, SessionRequest};

use crate::harness::{Api, Cluster, PATIENCE, Process, Setup, eventually, get, own_address, read, write};
use attack::{HEALTH, Half, WRITE, continuation_flood, drip, half_sent, long_headers, ping, rapid_resets};
use attack::{unread, watchers, whole_within, wordless};
use friend::Friend;

/// Longest shutdown: `witan dev` waits ten seconds for requests in flight, and the machine may be busy.
const ENDS_WITHIN: Duration = Duration::from_secs(25);

/// A cluster under attack, each member a process of its own, and the coordinator's memory before. The harness limits that to one GiB.
struct Target {
    cluster: Cluster,
    friend: Friend,
    before_mib: u64,
}

impl Target {
    async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// The same, with these settings of the coordinator.
    async fn start_with(settings: &[(&'static str, &str)]) -> Self {
        let settings = settings.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        let setup = Setup { synced: false, files: Some(FILES), settings, ..Setup::default() };
        let mut cluster = Cluster::with(setup).await;
        cluster.api().tenant("t", |_| {}).await;
        let friend = Friend::start(cluster.address());
        friend.served(20).await;
        friend.begin();
        assert_limited(cluster.coordinator().id());
        let before_mib = peak_mib(cluster.coordinator().id());
        Self { cluster, friend, before_mib }
    }

    /// The same cluster after the end of its coordinator, with another one at its address.
    async fn restarted(mut self) -> Self {
        println!("before the restart: {}", self.friend.end().await);
        self.cluster.coordinator().end().await;
        self.cluster.start_coordinator().await;
        self.cluster.all_reachable().await;
        self.friend = Friend::start(self.cluster.address());
        self
    }

    fn api(&self) -> Api {
        self.cluster.api()
    }

    fn address(&self) -> SocketAddr {
        self.cluster.address()
    }

    fn admin(&self) -> SocketAddr {
        self.cluster.admin()
    }

    /// The well-behaved client is served, the memory has grown by at most this much, and the server stops in time. `attached` keeps
    /// the attackers connected.
    async fn withstands<T>(mut self, what: &str, most_mib: u64, attached: T) {
        self.friend.served(20).await;
        let (status, _) = get(self.admin(), "/livez").await.expect("HTTP is served, too");
        assert_eq!(status, 200);
        let summary = self.friend.end().await;
        let coordinator = self.cluster.coordinator();
        let (before, peak) = (self.before_mib, peak_mib(coordinator.id()));
        let began = Instant::now();
        coordinator.signal("TERM");
        let status = coordinator.ended().await;
        let took = began.elapsed();
        drop(attached);
        // docs/hostile.md has a table of these.
        println!("{what}: {before} -> {peak} MiB (at most {most_mib} more), {summary}, ended after {took:?}");
        assert!(peak.saturating_sub(before) <= most_mib, "{what}: the memory grew from {before} to {peak} MiB");
        assert!(status.success() && took < ENDS_WITHIN, "{what}: {status} after {took:?}");
    }
}

/// Limit on open files of a process of these tests: the connections of a crowd, and some.
const FILES: u32 = 16_384;
const CROWD: usize = 10_000;

const OK: u32 = 0;
const INVALID_ARGUMENT: u32 = 3;
const DEADLINE_EXCEEDED: u32 = 4;
const NOT_FOUND: u32 = 5;
const RESOURCE_EXHAUSTED: u32 = 8;
const OUT_OF_RANGE: u32 = 11;

/// The harness limits coordinators; without a limit, these tests would show less than they say.
fn assert_limited(process: u32) {
    let limits = std::fs::read_to_string(format!("/proc/{process}/limits")).expect("the process is there");
    let memory = limits.lines().find_map(|line| line.strip_prefix("Max data size")).expect("a limit");
    assert!(memory.trim_start().starts_with("1073741824 "), "{limits}");
}

/// Peak memory of a process, in MiB.
fn peak_mib(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("the process is there");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("its peak");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_reset_at_once() {
    let target = Target::start().await;
    let resets = rapid_resets(target.address(), 16, 5000).await;
    println!("{resets} calls were reset");
    target.withstands("rapid reset", 50, ()).await;
}

/// Whoever collects the logs has stopped, and the pipe is full: every write to it blocks for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_reads() {
    const PIPE_BYTES: usize = 1 << 16;
    let (unread, mut stderr) = std::io::pipe().expect("make a pipe");
    std::io::Write::write_all(&mut stderr, &[b'\n'; PIPE_BYTES]).expect("it is empty");
    let folder = tempfile::tempdir().expect("make a folder");
    let mut command = Process::witan();
    let free = SocketAddr::new(own_address(), 0).to_string();
    command.args(["dev", "--durability", "os", "--listen", &free, "--admin-listen", &free, "--node-port", "0"]);
    command.args(["--log-level", "debug"]).arg("--data-dir").arg(folder.path().join("data"));
    let mut dev = Process::start_logging_to(stderr.into(), "dev", command, folder.path());
    dev.ready().await;
    let api = Api::new(dev.address("address"));
    api.tenant("t", |_| {}).await;
    for n in 0..100 {
        api.write(write("t", &format!("k{n}"), "v")).await.expect("written");
    }
    let (status, _) = get(dev.address("admin"), "/livez").await.expect("HTTP is served");
    assert_eq!(status, 200);
    let began = Instant::now();
    dev.signal("TERM");
    let status = dev.ended().await;
    assert!(status.success() && began.elapsed() < ENDS_WITHIN, "{status} after {:?}", began.elapsed());
    drop(unread);
}

/// Reads of large values, which take a few bytes to ask for, in three sessions: small values do not wait behind them.
#[tokio::test(flavor = "multi_thread")]
async fn reads_of_large_values() {
    const SESSIONS: usize = 3;
    let target = Target::start().await;
    let api = target.api();
    for n in 0..4 {
        api.write(write("t", &format!("large-{n}"), vec![b'x'; 4 << 20])).await.expect("written");
    }
    let attack = async |_| {
        let mut session = target.api().session().await;
        let reads = (0..32).map(|n| {
            let operation = Some(Operation::Read(read("t", &format!("large-{}", n % 4))));
            SessionRequest { id: n, operation, timeout_ms: 0 }
        });
        session.send(reads.collect()).await;
        session.take(32).await
    };
    let found = join_all((0..SESSIONS).map(attack)).await.into_iter().flatten();
    let found =
        found.filter(|response| matches!(&response.result, Some(Outcome::Read(found)) if found.value.len() == 4 << 20));
    let found = found.count();
    assert!(found > 0, "the large values are served, too");
    println!("{found} of {} large reads were served", SESSIONS * 32);
    target.withstands("large reads", 300, ()).await;
}

/// A client that asks for large values and takes none of their bytes.
#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_takes() {
    let target = Target::start().await;
    let api = target.api();
    api.write(write("t", "large", vec![b'x'; 1 << 20])).await.expect("written");
    let method = "witan.v1.CoordinatorService/ReadKeyValue";
    let message = read("t", "large");
    let (_, closed, _calls) = unread(target.address(), method, &message, 2).await;
    let attached = join_all((0..8).map(|_| unread(target.address(), method, &message, 100))).await;
    let untaken: usize = attached.iter().map(|(untaken, ..)| untaken).sum();
    assert!((1..=192).contains(&untaken), "{untaken} MiB wait; a tenant may have three quarters of 256");
    // What takes a slow line twenty seconds is given up after that.
    tokio::time::timeout(PATIENCE, closed).await.expect("the connection is closed in time").expect("no panic");
    // The records that all these reads fetch at once are bounded, too.
    target.withstands("untaken answers", 700, attached).await;
}

/// Streams that need no credential, and that nothing ends.
#[tokio::test(flavor = "multi_thread")]
async fn more_watchers_of_health_than_anybody_needs() {
    let target = Target::start().await;
    let (open, attached) = watchers(target.address(), 20, 1000).await;
    assert_eq!(open, 20 * 16, "of each connection");
    target.withstands("watchers", 100, attached).await;
}

/// Connections that are kept alive and used for nothing: as many as the server accepts.
#[tokio::test(flavor = "multi_thread")]
async fn connections_that_only_ping() {
    const MOST: usize = 64;
    let target = Target::start_with(&[("WITAN_SERVER__MAX_CONNECTIONS", "64")]).await;
    let pinging: Vec<_> = (0..2 * MOST).map(|_| tokio::spawn(ping(target.address()))).collect();
    eventually("every place is taken", async || {
        let (_, metrics) = get(target.admin(), "/metrics").await.ok()?;
        let open = format!("witan_connections{{listener=\"grpc\"}} {MOST}\n");
        let refused = |line: &str| line.starts_with(r#"witan_connections_closed_total{listener="grpc",reason="full"}"#);
        (metrics.contains(&open) && metrics.lines().any(|line| refused(line) && !line.ends_with(" 0"))).then_some(())
    })
    .await;
    // One of them makes room.
    target.friend.newcomers(5).await;
    pinging.iter().for_each(tokio::task::JoinHandle::abort);
    target.withstands("pings", 50, ()).await;
}

/// Headers are kept for as long as their call is under way: three hundred bytes or fifteen thousand.
#[tokio::test(flavor = "multi_thread")]
async fn calls_with_long_headers() {
    const CONNECTIONS: usize = 30;
    let target = Target::start().await;
    let attacks = join_all((0..CONNECTIONS).map(|_| long_headers(target.address(), 1000))).await;
    let refused: usize = attacks.iter().map(|(refused, _)| refused).sum();
    println!("{refused} of {} calls were refused", CONNECTIONS * 1000);
    target.withstands("long headers", 650, attacks).await;
}

/// Deadlines that no clock has: a number of seconds that cannot be added to the present.
#[tokio::test(flavor = "multi_thread")]
async fn deadlines_that_no_clock_has() {
    const TIMEOUTS: [&str; 3] = ["18446744073709551615S", "99999999H", "18446744073709551615n"];
    let target = Target::start().await;
    target.api().tenant("doomed", |_| {}).await;
    let delete = DeleteTenantRequest {
        tenant_id: "doomed".to_owned(),
        confirm: "doomed".to_owned(),
        ..DeleteTenantRequest::default()
    };
    let list = ListKeysRequest { tenant_id: "t".to_owned(), ..ListKeysRequest::default() };
    let calls = [
        (WRITE, write("t", "k", "v").encode_to_vec()),
        ("witan.v1.CoordinatorService/ReadKeyValue", read("t", "k").encode_to_vec()),
        ("witan.v1.CoordinatorService/ListKeys", list.encode_to_vec()),
        ("witan.v1.CoordinatorService/DeleteTenant", delete.encode_to_vec()),
    ];
    for (method, message) in &calls {
        for timeout in TIMEOUTS {
            let (status, why) = whole_within(target.address(), method, message, Some(timeout)).await;
            let gone = method.ends_with("/DeleteTenant") && status == NOT_FOUND;
            assert!(status == OK || gone, "{method} within {timeout}: {status} {why}");
        }
    }
    assert!(!target.cluster.coordinator_log().contains("panicked"));
    target.withstands("deadlines", 50, ()).await;
}

/// HTTP clients that never finish their headers. Probes come from another address.
#[tokio::test(flavor = "multi_thread")]
async fn http_clients_that_send_a_byte_now_and_then() {
    let target = Target::start().await;
    let (admin, from) = (target.admin(), IpAddr::from([127, 0, 66, 1]));
    let mut dripping: FuturesUnordered<_> = (0..300).map(|_| drip(admin, from)).collect();
    let mut closed = 0;
    while closed < 300 {
        let (status, _) = get(admin, "/livez").await.expect("a probe is answered");
        assert_eq!(status, 200);
        let next = tokio::time::timeout(Duration::from_millis(100), dripping.next()).await;
        closed += usize::from(next.is_ok());
    }
    target.withstands("slow headers", 50, ()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_without_an_end() {
    const MOST: usize = 64 << 20;
    let target = Target::start().await;
    for attempt in 0..50 {
        let sent = continuation_flood(target.address(), MOST).await;
        assert!(sent < MOST, "attempt {attempt}: the server took {sent} bytes of headers");
    }
    target.withstands("header flood", 50, ()).await;
}

/// Connections that send nothing, or only a part of the HTTP/2 preface, are closed; calls whose message does not arrive end with a
/// deadline.
#[tokio::test(flavor = "multi_thread")]
async fn the_slow_and_the_silent() {
    let target = Target::start().await;
    let silent = wordless(target.address(), 1000, b"").await;
    let stammering = wordless(target.address(), 200, b"PRI * HTTP/2.0").await;
    let mut half = join_all((0..10).map(|_| half_sent(target.address(), WRITE, 100, 1 << 20, 1000))).await;
    target.friend.served(20).await;
    // When the server's queue of new connections overflows, the kernel drops the client's last packet of the handshake: the client is
    // connected, and the server has never heard of it. The first byte, which is a valid one, settles that. A connection that the server
    // had accepted and kept would stay open.
    let unheard_of =
        join_all(silent.into_iter().map(async |mut stream| (!is_closed(&mut stream).await).then_some(stream)));
    join_all(unheard_of.await.into_iter().flatten().map(async |mut stream| {
        let _ = stream.write_all(b"P").await;
        closed(&mut stream).await;
    }))
    .await;
    for mut stream in stammering {
        closed(&mut stream).await;
    }
    let mut ended = Vec::new();
    for Half { statuses, .. } in &mut half {
        for status in statuses.drain(..) {
            ended.push(tokio::time::timeout(PATIENCE, status).await.expect("in time").expect("a response"));
        }
    }
    // Some exceeded the limit, the others timed out.
    assert!(ended.iter().all(|status| [DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED].contains(status)), "{ended:?}");
    assert!(ended.contains(&DEADLINE_EXCEEDED));
    let attached = wordless(target.address(), 500, b"").await;
    target.withstands("slow and silent", 150, (half, attached)).await;
}

/// More incomplete calls than the limit, all of a kind that needs no credential: they only displace each other, and neither useful
/// calls nor an open session are affected.
#[tokio::test(flavor = "multi_thread")]
async fn probes_that_never_end() {
    let target = Target::start().await;
    let mut session = target.api().session().await;
    let half = join_all((0..31).map(|_| half_sent(target.address(), HEALTH, 1000, 10, 5))).await;
    target.friend.served(20).await;
    let answer = session.within(PATIENCE, Operation::Write(write("t", "session", "goes on"))).await;
    assert!(matches!(answer, Outcome::Write(_)), "{answer:?}");
    target.withstands("probes without an end", 200, half).await;
}

async fn closed(stream: &mut TcpStream) {
    assert!(is_closed(stream).await, "the server closes who says nothing");
}

/// True once the server has closed the connection; false if it has not for a long time.
async fn is_closed(stream: &mut TcpStream) -> bool {
    let mut words = [0; 64];
    // What was sent before does not matter, nor whether the connection ends with a goodbye or a reset.
    let ends = async { while matches!(stream.read(&mut words).await, Ok(1..)) {} };
    tokio::time::timeout(PATIENCE, ends).await.is_ok()
}

/// 128 incomplete messages of 15 MiB: two GiB, if the server kept them.
#[tokio::test(flavor = "multi_thread")]
async fn giants() {
    let target = Target::start().await;
    let half = join_all((0..16).map(|_| half_sent(target.address(), WRITE, 8, 15 << 20, (15 << 20) - 1))).await;
    target.friend.served(20).await;
    target.withstands("giant messages", 400, half).await;
}

/// Ten thousand connections that send the HTTP/2 preface and then stay idle: as many as the server accepts. Later clients are
/// served, since idle connections are closed for them.
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
    target.withstands("ten thousand connections", 300, crowd).await;
}

/// The crowd: started by its test as a separate process.
#[tokio::test]
#[ignore = "run by ten_thousand_connections, in a process of its own"]
async fn crowd_process() {
    let Ok(address) = std::env::var("WITAN_CROWD") else { return };
    let address: SocketAddr = address.parse().expect("an address");
    let crowd = wordless(address, CROWD, attack::PREFACE).await;
    // After the start of the test runner's line.
    println!("\nready connections={}", crowd.len());
    tokio::time::sleep(10 * PATIENCE).await;
    drop(crowd);
}
