//! The table.

use super::Key;
use super::Kind::{Choice, Flag, Nodes, Number, Path, Secret, Share, Size, Text, Texts, Time};

const ANY: u64 = u64::MAX;
const LEVELS: &[&str] = &["one", "quorum", "all"];
const SSL_MODES: &[&str] = &["disable", "prefer", "require", "verify-ca", "verify-full"];

/// Every key, in the order in which they are documented.
pub const KEYS: &[Key] = &[
    Key::new("server.host", Text, "IP address on which gRPC is served, or localhost; 0.0.0.0 is every address of the machine. Anything but loopback needs credentials (see security).")
        .default("127.0.0.1"),
    Key::new("server.port", Number(0, 65_535), "Port on which gRPC is served; 0 takes a free one, which the line `ready` tells.").default("50051"),
    Key::new("server.node_id", Text, "This coordinator's id; no two coordinators of a database have the same.").default("coordinator-1"),
    Key::new("server.data_dir", Path, "Folder of this coordinator's own files: embedded stores, compiled plugins. Made when it does not exist.")
        .default("/var/lib/witan"),
    Key::new("server.max_connections", Number(1, 1_000_000), "Connections of clients at a time; those beyond are closed at once.").default("10000"),
    Key::new("server.read_timeout", Time, "How long reading a request may take.").default("10s")
        .idle("a gRPC connection carries many requests and streams that may rest; each request has its own deadline (consistency.read_timeout), and peers that are gone are found by keepalive"),
    Key::new("server.write_timeout", Time, "How long writing a response may take.").default("10s")
        .idle("a gRPC connection carries many requests and streams that may rest; each request has its own deadline (consistency.write_timeout), and peers that are gone are found by keepalive"),
    Key::new("server.shutdown_timeout", Time, "How long a shutdown may take: what is in flight then is cut off.").default("30s"),
    Key::new("database.url", Secret, "Address of the PostgreSQL database, such as postgres://user:password@host/witan?sslmode=verify-full; in place of host, port, database, user and password. Better in url_file or the environment than in a file that others read.")
        .sample("postgres://witan:pw@localhost/witan").otherwise("see database.host"),
    Key::new("database.url_file", Path, "File with that address.").otherwise("see database.host"),
    Key::new("database.host", Text, "Host of the PostgreSQL database that several coordinators share for their metadata.")
        .otherwise("metadata are in a file under server.data_dir, for one coordinator"),
    Key::new("database.port", Number(1, 65_535), "Its port.").default("5432"),
    Key::new("database.database", Text, "Name of the database, in UTF-8.").default("witan"),
    Key::new("database.user", Text, "User of the database.").default("witan"),
    Key::new("database.password", Secret, "Password of that user. Better in password_file or the environment.").otherwise("no password"),
    Key::new("database.password_file", Path, "File with that password.").otherwise("see database.password"),
    Key::new("database.ssl_mode", Choice(SSL_MODES), "How the connection is secured. Only verify-full proves that the server is the right one. Must be written down unless the host is on this machine.")
        .sample("verify-full").otherwise("prefer, on this machine only"),
    Key::new("database.ca_file", Path, "PEM file of the authorities that vouch for the database's certificate.").otherwise("those of the operating system"),
    Key::new("database.max_connections", Number(1, 100), "Most connections to the database; one more listens for changes.").default("8"),
    Key::new("database.min_connections", Number(0, 100), "Connections that are kept open.").default("0")
        .idle("connections are opened when they are needed and kept for the next operation"),
    Key::new("database.conn_max_lifetime", Time, "Age at which a connection is closed.").default("30m")
        .idle("a connection that has rested is checked before it is used again, and let go after its own bound"),
    Key::new("database.connect_timeout", Time, "How long connecting may take.").default("3s"),
    Key::new("database.operation_timeout", Time, "How long an operation on the metadata may take, all waiting included.").default("5s"),
    Key::new("redis.url", Secret, "Address of Redis, such as rediss://user:password@host:6379/0; several, separated by commas, are those of a Redis Cluster, or of Sentinels. In place of host, port and what else is part of it.")
        .sample("redis://localhost:6379").otherwise("see redis.host"),
    Key::new("redis.url_file", Path, "File with that address.").otherwise("see redis.host"),
    Key::new("redis.addresses", Texts, "HOST:PORT of some servers of a Redis Cluster, or of the Sentinels (with sentinel_master).").sample("redis-1:6379,redis-2:6379").otherwise("see redis.host"),
    Key::new("redis.sentinel_master", Text, "The addresses are those of Sentinels, which know the master by this name.").otherwise("no Sentinels"),
    Key::new("redis.host", Text, "Host of the Redis (7 or later) or Valkey that several coordinators share for idempotency keys.")
        .otherwise("idempotency keys are under server.data_dir, for one coordinator"),
    Key::new("redis.port", Number(1, 65_535), "Its port.").default("6379"),
    Key::new("redis.user", Text, "User, where it is not Redis's default one.").otherwise("the default user"),
    Key::new("redis.password", Secret, "Password; empty: none. Better in password_file or the environment.").otherwise("no password"),
    Key::new("redis.password_file", Path, "File with that password.").otherwise("see redis.password"),
    Key::new("redis.db", Number(0, 1_000_000), "Number of the database; 0 in a Cluster.").default("0"),
    Key::new("redis.tls", Flag, "Whether Redis is spoken to with TLS.").default("false"),
    Key::new("redis.ca_file", Path, "PEM file of the authorities that vouch for its certificate.").otherwise("those of the operating system"),
    Key::new("redis.key_prefix", Text, "What every key starts with, so that several clusters can share a server: letters, digits and _.-").default("witan"),
    Key::new("redis.timeout", Time, "How long a step may take; whether it was done is unknown after that.").default("1s"),
    Key::new("redis.connect_timeout", Time, "How long connecting may take.").default("1s"),
    Key::new("redis.max_retries", Number(0, ANY), "How often a command is tried again.").default("0")
        .idle("a step that may have been done is only tried again by the idempotency protocol, which knows how"),
    Key::new("redis.pool_size", Number(0, ANY), "Connections to Redis.").default("1")
        .idle("one connection carries the commands of all requests, pipelined"),
    Key::new("redis.min_idle_conns", Number(0, ANY), "Connections that are kept open.").default("0")
        .idle("one connection carries the commands of all requests, pipelined"),
    Key::new("hash_ring.virtual_nodes", Number(1, 4096), "Points on the ring of a storage node that does not say how many.").default("150"),
    Key::new("hash_ring.update_interval", Time, "How often the nodes are read again.").default("30s")
        .idle("changes are announced by the database and looked for twice a second"),
    Key::new("consistency.default_level", Choice(LEVELS), "Level of new tenants that do not choose one.").default("quorum").reloads(),
    Key::new("consistency.write_timeout", Time, "Deadline of a change for which the client sets none; at most 10s.").default("5s").reloads(),
    Key::new("consistency.read_timeout", Time, "Deadline of a read for which the client sets none; at most 10s.").default("3s").reloads(),
    Key::new("consistency.repair_async", Flag, "Whether, for new tenants that do not choose, a read is answered before the stale replicas that it found are repaired; false makes their quorum reads linearizable.")
        .default("true").reloads(),
    Key::new("cache.tenant_config_ttl", Time, "How long a tenant is served without looking again. Changes by other coordinators are announced long before.").default("5m"),
    Key::new("cache.max_size", Number(1, 10_000_000), "Tenants that are kept at hand.").default("10000"),
    Key::new("metrics.enabled", Flag, "Whether metrics are served; liveness and readiness always are.").default("true"),
    Key::new("metrics.host", Text, "IP address on which metrics and health are served over HTTP, or localhost.").default("127.0.0.1"),
    Key::new("metrics.port", Number(0, 65_535), "Port on which they are; 0 takes a free one.").default("9090"),
    Key::new("metrics.path", Text, "Path of the metrics.").default("/metrics"),
    Key::new("logging.level", Text, "What is logged: error, warn, info, debug, trace, or module=level, separated by commas.").default("info").reloads(),
    Key::new("logging.format", Choice(&["console", "json"]), "Lines for people, or one JSON object each.").default("console"),
    Key::new("storage_nodes", Nodes, "The nodes that take part from the first start on, each {id, host, port, virtual_nodes}; later ones join by `witan nodes add`. In the environment: node-1=10.0.0.1:50052,node-2=...")
        .otherwise("those on record"),
    Key::new("plugins.folder", Path, "Folder that is watched for plugins.").otherwise("plugins come by the API only"),
    Key::new("durability", Choice(&["sync", "os"]), "What an acknowledgement of the embedded stores means: synced to disk, or handed to the operating system.").default("sync"),
    Key::new("telemetry.otlp_endpoint", Text, "Address of an OpenTelemetry collector (OTLP over gRPC), such as http://127.0.0.1:4317.")
        .sample("http://127.0.0.1:4317").otherwise("no traces"),
    Key::new("telemetry.sample_ratio", Share, "Share of the requests without a trace of their own that are traced. A client's decision (traceparent) is followed.").default("0.01"),
    Key::new("telemetry.service_name", Text, "Name of this service in traces.").default("witan"),
    Key::new("security.allow_anonymous", Flag, "Serve clients without a credential. Without it, and without any way to tell clients apart, only loopback is served.").default("false"),
    Key::new("security.tokens", Flag, "Whether API tokens (`witan token create`) are asked for.").default("false"),
    Key::new("security.tls.cert_file", Path, "PEM file of the certificate of gRPC and HTTP, and of those between it and its authority. Read again when it changes.").otherwise("no TLS"),
    Key::new("security.tls.key_file", Path, "PEM file of its private key.").otherwise("needed with cert_file"),
    Key::new("security.tls.client_ca_file", Path, "PEM file of the authorities whose client certificates are taken; with it, a client without one is refused.").otherwise("no certificate is asked for"),
    Key::new("security.jwt.algorithm", Choice(&["RS256", "ES256", "EdDSA", "HS256"]), "The one algorithm of JSON web tokens that is taken.").otherwise("no JSON web tokens"),
    Key::new("security.jwt.key_file", Path, "PEM file of the issuer's public key; for HS256 a file with the secret.").otherwise("needed with algorithm"),
    Key::new("security.jwt.issuer", Text, "What the claim `iss` must be.").otherwise("needed with algorithm"),
    Key::new("security.jwt.audience", Text, "What the claim `aud` must be or hold.").otherwise("needed with algorithm"),
    Key::new("security.nodes.tls.ca_file", Path, "PEM file of the authorities that vouch for storage nodes.").otherwise("no TLS towards nodes"),
    Key::new("security.nodes.tls.cert_file", Path, "PEM file of the certificate that is shown to storage nodes.").otherwise("none is shown"),
    Key::new("security.nodes.tls.key_file", Path, "PEM file of its private key.").otherwise("needed with cert_file"),
    Key::new("security.nodes.tls.server_name", Text, "The name that nodes' certificates must have.").otherwise("the host that was dialled"),
    Key::new("security.nodes.shared_secret_file", Path, "File with the secret that coordinators and nodes share.").otherwise("no secret"),
    Key::new("security.rate_limits.read", Number(0, 4_294_967_295), "Reads a second of one tenant; 0: no limit.").default("0").reloads(),
    Key::new("security.rate_limits.write", Number(0, 4_294_967_295), "Writes and deletes a second of one tenant; 0: no limit.").default("0").reloads(),
    Key::new("security.rate_limits.admin", Number(0, 4_294_967_295), "Changes of a tenant a second; 0: no limit.").default("0").reloads(),
    Key::new("security.rate_limits.operator", Number(0, 4_294_967_295), "Changes of nodes and plugins a second, of all together; 0: no limit.").default("0").reloads(),
    Key::new("security.audit.file", Path, "File to which changes and refusals are appended, as JSON lines.").otherwise("no record of them"),
    Key::new("security.audit.max_bytes", Size, "Size at which it is put aside and a new one begun.").otherwise("64MiB"),
    Key::new("security.audit.keep", Number(0, 4_294_967_295), "Files put aside that are kept.").otherwise("4"),
];
