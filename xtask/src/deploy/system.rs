//! A small system, secured like the compose file's: a storage node and a coordinator with mutual TLS, and clients with tokens.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::Here;
use crate::run;
use crate::server::Server;

/// One storage node and one coordinator with embedded stores. Killed when dropped.
pub struct System {
    node: Server,
    coordinator: Server,
    /// The authority that issued all certificates.
    pub authority: PathBuf,
    /// A file with a token for metrics.
    pub token: PathBuf,
    /// A file with a token for a tenant.
    user: PathBuf,
    node_certificate: [PathBuf; 2],
}

impl System {
    /// Starts both, on free ports, with the secrets made by the compose file's script.
    pub fn start(here: &Here, witan: &Path, folder: &Path) -> Result<Self> {
        let secret = |name: &str| here.work.join("secrets").join(name);
        let (authority, node_certificate) = (secret("ca.pem"), [secret("node-1.pem"), secret("node-1.key")]);
        let mut node = Command::new(witan);
        node.args(["node", "--id", "node-1", "--listen", "127.0.0.1:0", "--data-dir"]).arg(folder.join("node"));
        node.arg("--tls-cert-file").arg(&node_certificate[0]).arg("--tls-key-file").arg(&node_certificate[1]);
        let node = Server::start(node.arg("--tls-client-ca-file").arg(&authority), &folder.join("node.log"))?;

        let (host, port) = node.ready("address")?.rsplit_once(':').context("the node's address has no port")?;
        let port: u16 = port.parse().context("read the node's port")?;
        let (cert, key) = (secret("coordinator.pem"), secret("coordinator.key"));
        let configuration = serde_json::json!({
            "server": { "host": "127.0.0.1", "port": 0, "data_dir": folder.join("coordinator") },
            "metrics": { "host": "127.0.0.1", "port": 0 },
            "storage_nodes": [{ "id": "node-1", "host": host, "port": port }],
            "security": {
                "tokens": true,
                "tls": { "cert_file": cert, "key_file": key },
                "nodes": { "tls": { "ca_file": authority, "cert_file": cert, "key_file": key } },
                "audit": { "file": folder.join("audit.jsonl") },
            },
        });
        let file = folder.join("witan.yaml");
        fs::write(&file, configuration.to_string()).with_context(|| format!("write {}", file.display()))?;
        let made = |label: &str, scopes: &[&str]| -> Result<PathBuf> {
            let token = folder.join(format!("{label}.token"));
            let mut create = Command::new(witan);
            create.args(["token", "create", "--label", label]).args(scopes).arg("--config").arg(&file);
            fs::write(&token, run::output(&mut create)?).with_context(|| format!("write {}", token.display()))?;
            Ok(token)
        };
        let (token, user) = (made("prometheus", &[])?, made("user", &["--scope=read,write,admin"])?);
        let mut serve = Command::new(witan);
        let coordinator = Server::start(serve.args(["serve", "--config"]).arg(&file), &folder.join("coordinator.log"))?;
        Ok(Self { node, coordinator, authority, token, user, node_certificate })
    }

    /// The address that Prometheus scrapes.
    pub fn metrics(&self) -> Result<&str> {
        self.coordinator.ready("admin")
    }

    /// Writes a key: some metrics exist only after a request.
    pub fn use_it(&self, witan: &Path) -> Result<()> {
        let calls: [&[&str]; 2] = [
            &["tenant", "create", "shop", "--replication-factor=1"],
            &["kv", "put", "--tenant=shop", "greeting", "hello"],
        ];
        for call in calls {
            let mut command = Command::new(witan);
            command.args(call).arg(format!("--endpoint=https://{}", self.coordinator.ready("address")?));
            command.arg("--ca-file").arg(&self.authority).arg("--token-file").arg(&self.user);
            run::output(&mut command)?;
        }
        Ok(())
    }

    /// Checks the health of both, as containers' probes do.
    pub fn is_well(&self, witan: &Path) -> Result<()> {
        let mut coordinator = Command::new(witan);
        coordinator.args(["health", "--service=witan.v1.CoordinatorService"]);
        let mut node = Command::new(witan);
        node.arg("health").arg("--client-cert-file").arg(&self.node_certificate[0]);
        node.arg("--client-key-file").arg(&self.node_certificate[1]);
        for (command, server) in [(&mut coordinator, &self.coordinator), (&mut node, &self.node)] {
            command
                .arg(format!("--endpoint=https://{}", server.ready("address")?))
                .arg("--ca-file")
                .arg(&self.authority);
            run::output(command)?;
        }
        Ok(())
    }
}
