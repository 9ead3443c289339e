//! Several coordinators on one PostgreSQL and one Redis: what one changes, the others see; what one has done, no other does
//! again; and what they share may go away for a while.

use std::net::SocketAddr;

use tempfile::TempDir;
use tonic::Code;
use witan_servers::{Postgres, Redis};
use witan_wire::v1;

use crate::harness::{Api, Process, eventually, get, own_address, read, write};

const NODES: usize = 3;

/// Storage nodes, the shared servers, and coordinators.
struct Company {
    // Dropped in this order: nobody misses its folder or its servers.
    coordinators: Vec<Coordinator>,
    _nodes: Vec<Process>,
    nodes: Vec<String>,
    postgres: Postgres,
    redis: Redis,
    folder: TempDir,
}

struct Coordinator {
    id: String,
    process: Option<Process>,
    address: SocketAddr,
    admin: SocketAddr,
}

impl Coordinator {
    fn api(&self) -> Api {
        Api::new(self.address)
    }
}

impl Company {
    async fn of(coordinators: usize) -> Self {
        let folder = tempfile::tempdir().expect("make a folder");
        let free = SocketAddr::new(own_address(), 0);
        let start = |number: usize| {
            let mut command = Process::witan();
            let id = format!("node-{number}");
            command.args(["node", "--id", &id, "--durability", "os"]).arg("--data-dir").arg(folder.path().join(&id));
            command.args(["--listen", &free.to_string()]);
            Process::start(&id, command, folder.path())
        };
        let mut processes: Vec<Process> = (1..=NODES).map(start).collect();
        let mut nodes = Vec::new();
        for (index, process) in processes.iter_mut().enumerate() {
            process.ready().await;
            nodes.push(format!("node-{}={}", index + 1, process.address("address")));
        }
        let servers = tokio::task::spawn_blocking(|| (Postgres::start(), Redis::start()));
        let (postgres, redis) = servers.await.expect("the servers start");
        std::fs::write(folder.path().join("database"), postgres.url()).expect("write a file");
        std::fs::write(folder.path().join("redis"), redis.url()).expect("write a file");
        let mut company = Self { coordinators: Vec::new(), _nodes: processes, nodes, postgres, redis, folder };
        for number in 1..=coordinators {
            let id = format!("coordinator-{number}");
            let free = SocketAddr::new(own_address(), 0);
            company.coordinators.push(Coordinator { id, process: None, address: free, admin: free });
            company.start(number - 1).await;
        }
        company
    }

    fn command(&self, id: &str, address: SocketAddr, admin: SocketAddr) -> std::process::Command {
        let path = self.folder.path();
        let mut command = Process::witan();
        command.args(["serve", "--node-id", id, "--durability", "os"]).arg("--data-dir").arg(path.join(id));
        command.args(["--listen", &address.to_string(), "--admin-listen", &admin.to_string()]);
        command.arg("--database-url-file").arg(path.join("database"));
        command.arg("--redis-url-file").arg(path.join("redis"));
        self.nodes.iter().for_each(|node| _ = command.args(["--node", node]));
        command
    }

    /// Starts a coordinator where it was before, and waits until it is ready.
    async fn start(&mut self, index: usize) {
        let Coordinator { id, address, admin, .. } = &self.coordinators[index];
        let mut process = Process::start(id, self.command(id, *address, *admin), self.folder.path());
        process.ready().await;
        let coordinator = &mut self.coordinators[index];
        coordinator.address = process.address("address");
        coordinator.admin = process.address("admin");
        coordinator.process = Some(process);
        let admin = coordinator.admin;
        let api = coordinator.api();
        eventually("the coordinator reaches every node", async || {
            let listed = api.client().list_storage_nodes(v1::ListStorageNodesRequest {}).await.ok()?.into_inner();
            (listed.nodes.len() == NODES && listed.nodes.iter().all(|node| node.reachable)).then_some(())
        })
        .await;
        eventually("the coordinator is ready", async || (get(admin, "/readyz").await.ok()?.0 == 200).then_some(()))
            .await;
    }

    fn api(&self, index: usize) -> Api {
        self.coordinators[index].api()
    }
}

async fn version(api: &Api, tenant: &str) -> v1::GetTenantResponse {
    let request = v1::GetTenantRequest { tenant_id: tenant.to_owned() };
    api.client().get_tenant(request).await.expect("the tenant is there").into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_coordinator_changes_the_others_see() {
    let company = Company::of(2).await;
    let (first, second) = (company.api(0), company.api(1));
    first.tenant("shop", |_| {}).await;
    // Written through one, read through the other; a context of one is good at the other.
    let written = first.write(write("shop", "k", "one")).await.expect("written");
    let found = second.read(read("shop", "k")).await.expect("read");
    assert_eq!(&found.value[..], b"one");
    let mut next = write("shop", "k", "two");
    next.context = written.context;
    second.write(next).await.expect("the first one's context is good here");
    assert_eq!(&first.read(read("shop", "k")).await.expect("read").value[..], b"two");

    // A change of a tenant that the other has at hand: it answers by it, without being asked to look.
    let update = v1::UpdateTenantRequest {
        tenant_id: "shop".to_owned(),
        default_level: "all".to_owned(),
        ..v1::UpdateTenantRequest::default()
    };
    first.client().update_tenant(update).await.expect("updated");
    let mut attempt = 0;
    eventually("the other coordinator follows the change", async || {
        attempt += 1;
        let met = second.write(write("shop", &format!("k{attempt}"), "v")).await.expect("written").consistency;
        (met == "all").then_some(())
    })
    .await;

    // Two that change the same version: one wins, the other is told.
    let version = version(&first, "shop").await.version;
    let racing = |api: &Api, level: &str| {
        let mut client = api.client();
        let update = v1::UpdateTenantRequest {
            tenant_id: "shop".to_owned(),
            version,
            default_level: level.to_owned(),
            ..v1::UpdateTenantRequest::default()
        };
        async move { client.update_tenant(update).await }
    };
    let (one, other) = tokio::join!(racing(&first, "one"), racing(&second, "quorum"));
    let lost: Vec<Code> = [one, other].into_iter().filter_map(|told| told.err().map(|status| status.code())).collect();
    assert_eq!(lost, [Code::Aborted]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_at_another_coordinator_has_no_second_effect() {
    let mut company = Company::of(2).await;
    company.api(0).tenant("shop", |_| {}).await;
    let mut pay = write("shop", "balance", "paid");
    pay.idempotency_key = "order-7".to_owned();
    let first = company.api(0).write(pay.clone()).await.expect("written");
    assert!(!first.is_duplicate);
    company.api(1).write(write("shop", "balance", "spent")).await.expect("written");

    // The coordinator that did it is gone; its retry arrives at the other.
    company.coordinators[0].process = None;
    let again = company.api(1).write(pay.clone()).await.expect("answered");
    assert!(again.is_duplicate);
    assert_eq!(&company.api(1).read(read("shop", "balance")).await.expect("read").value[..], b"spent");

    // Without its records, the replicas still know the write's name.
    company.redis.ask("FLUSHALL");
    company.api(1).write(pay).await.expect("answered");
    assert_eq!(&company.api(1).read(read("shop", "balance")).await.expect("read").value[..], b"spent");
    // And one that was killed comes back under its id once its lease has run out.
    company.start(0).await;
    assert_eq!(&company.api(0).read(read("shop", "balance")).await.expect("read").value[..], b"spent");
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_are_away_stop_only_what_needs_them() {
    let company = Company::of(1).await;
    let api = company.api(0);
    api.tenant("shop", |_| {}).await;
    api.write(write("shop", "k", "before")).await.expect("written");

    company.postgres.kill();
    api.write(write("shop", "k", "without the database")).await.expect("a known tenant's writes go on");
    assert_eq!(&api.read(read("shop", "k")).await.expect("read").value[..], b"without the database");
    let request = v1::CreateTenantRequest { tenant_id: "other".to_owned(), ..v1::CreateTenantRequest::default() };
    let refused = api.client().create_tenant(request.clone()).await.expect_err("no database");
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    company.postgres.start_again();
    eventually("the database is used again, without help", async || {
        match api.client().create_tenant(request.clone()).await {
            Ok(_) => Some(()),
            // The answer to an earlier attempt may have been lost.
            Err(status) if status.code() == Code::AlreadyExists => Some(()),
            Err(_) => None,
        }
    })
    .await;

    company.redis.kill();
    api.write(write("shop", "k", "without a name")).await.expect("writes without a key need no Redis");
    let mut named = write("shop", "k", "named");
    named.idempotency_key = "order-8".to_owned();
    let refused = api.write(named.clone()).await.expect_err("nobody can say whether it was done");
    assert_eq!(refused.code, Code::Unavailable);
    company.redis.start_again();
    eventually("Redis is used again, without help", async || api.write(named.clone()).await.ok()).await;
    assert_eq!(&api.read(read("shop", "k")).await.expect("read").value[..], b"named");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_coordinators_id_is_refused_and_its_cluster_is_not_changed_behind_it() {
    let company = Company::of(2).await;
    let free = SocketAddr::new(own_address(), 0);
    let output = tokio::task::spawn_blocking({
        let mut command = company.command("coordinator-1", free, free);
        // Another machine: another folder, the same id.
        command.arg("--plugins").arg(company.folder.path().join("plugins"));
        let elsewhere = company.folder.path().join("elsewhere");
        let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
        let place = arguments.iter().position(|argument| argument == "--data-dir").expect("given") + 1;
        let mut command = Process::witan();
        for (index, argument) in arguments.iter().enumerate() {
            if index == place {
                command.arg(&elsewhere)
            } else {
                command.arg(argument)
            };
        }
        move || command.output().expect("run witan")
    });
    let output = output.await.expect("it ends");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && told.contains("--node-id"), "{told}");

    company.api(0).tenant("shop", |_| {}).await;
    let add = v1::AddStorageNodeRequest {
        node_id: "node-9".to_owned(),
        host: "127.0.0.1".to_owned(),
        port: 1,
        virtual_nodes: 0,
    };
    let refused = company.api(0).client().add_storage_node(add).await.expect_err("not alone");
    assert!(refused.message().contains("coordinator-2"), "{refused:?}");
}
