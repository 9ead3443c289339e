//! Tests that the servers do what other tests rely on.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use witan_servers::{PATIENCE, Postgres, Redis, RedisCluster, RedisSentinel};

fn listens(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, Duration::from_secs(5)).is_ok()
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    // A sentinel needs the longest on a busy machine.
    let until = Instant::now() + 3 * PATIENCE;
    while !is_so() {
        assert!(Instant::now() < until, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn postgres_keeps_what_it_has_committed() {
    let postgres = Postgres::start();
    let address = postgres.address();
    postgres.ask("CREATE TABLE t (n int)");
    for n in 0..2 {
        postgres.ask(&format!("INSERT INTO t VALUES ({n})"));
        if n == 0 {
            postgres.kill()
        } else {
            postgres.stop()
        }
        assert!(!listens(address));
        postgres.start_again();
    }
    assert_eq!(postgres.ask("SELECT n FROM t ORDER BY n"), "0\n1");
    assert_eq!(postgres.address(), address);
    assert_eq!(postgres.ask("SHOW fsync"), "on");
    assert!(postgres.database("other").ends_with("/other"));
    drop(postgres);
    assert!(!listens(address));
}

#[test]
fn postgres_can_be_paused_with_all_its_processes() {
    let postgres = Postgres::start_with(&[("fsync", "off")]);
    assert_eq!(postgres.ask("SHOW fsync"), "off");
    postgres.pause();
    let mut asked = Command::new("sh");
    asked.args(["-c", &format!("psql -X -A -t -d {} -c 'SELECT 42'", postgres.url())]);
    let mut asked = asked.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("run psql");
    // It gets no response until the server is resumed, however long that takes.
    assert!(asked.try_wait().expect("look").is_none());
    postgres.resume();
    let output = asked.wait_with_output().expect("psql ends");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "42");
}

#[test]
fn several_run_at_once() {
    let databases: Vec<Postgres> = (0..2).map(|_| Postgres::start()).collect();
    databases[0].ask("CREATE TABLE only_here (n int)");
    assert_eq!(databases[1].ask("SELECT count(*) FROM pg_tables WHERE tablename = 'only_here'"), "0");
    let caches: Vec<Redis> = (0..5).map(|_| Redis::start()).collect();
    caches[0].ask("SET key here");
    assert_eq!(caches[1].ask("GET key"), "");
}

#[test]
fn redis_keeps_what_it_has_acknowledged() {
    let redis = Redis::start();
    let address = redis.address();
    for n in 0..3 {
        redis.ask(&format!("RPUSH list {n}"));
        if n == 1 {
            redis.stop()
        } else {
            redis.kill()
        }
        assert!(!listens(address));
        redis.start_again();
    }
    assert_eq!(redis.ask("LRANGE list 0 -1"), "0\n1\n2");
    redis.pause();
    redis.resume();
    assert_eq!(redis.ask("PING"), "PONG");
    assert_eq!(redis.ask("CONFIG GET maxmemory-policy"), "maxmemory-policy\nnoeviction");
    drop(redis);
    assert!(!listens(address));
}

#[test]
fn a_cluster_serves_every_slot() {
    let cluster = RedisCluster::start();
    assert_eq!(cluster.urls().len(), 3);
    for node in cluster.nodes() {
        assert!(node.ask("CLUSTER INFO").contains("cluster_state:ok"));
    }
}

#[test]
fn a_sentinel_finds_another_master() {
    let sentinel = RedisSentinel::start();
    assert_eq!(sentinel.master(), Some(sentinel.first().address()));
    sentinel.kill_master();
    eventually("another master", || sentinel.master() == Some(sentinel.second().address()));
    eventually("it takes changes", || sentinel.second().ask("ROLE").starts_with("master"));
}

/// In a child process of this test: servers that are never stopped.
const CHILD: &str = "WITAN_SERVERS_TEST_CHILD";

#[test]
fn nothing_outlives_a_test_process_that_is_killed() {
    if std::env::var_os(CHILD).is_some() {
        let (postgres, redis) = (Postgres::start(), Redis::start());
        // A paused one cannot end on its own.
        postgres.pause();
        let directory = redis.ask("CONFIG GET dir").replace("dir\n", "");
        println!("\nstarted {} {} {directory}", postgres.address(), redis.address());
        loop {
            std::thread::park();
        }
    }
    let mut copy = Command::new(std::env::current_exe().expect("this test's path"))
        .args(["--exact", "nothing_outlives_a_test_process_that_is_killed", "--nocapture"])
        .env(CHILD, "1")
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts a copy of this test");
    let lines = BufReader::new(copy.stdout.take().expect("piped")).lines();
    let started = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("started ").map(str::to_owned));
    copy.kill().expect("kills the copy");
    copy.wait().expect("the copy ends");
    let started = started.expect("the copy has started its servers");
    let words: Vec<&str> = started.split(' ').collect();
    let [postgres, redis, folder] = words[..] else { panic!("{started}") };
    let gone = |address: &str| !listens(address.parse().expect("an address"));
    eventually("both are gone", || gone(postgres) && gone(redis) && !Path::new(folder).exists());
}
