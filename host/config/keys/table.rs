//! The table.

use super::Key;
use super::Kind::{Choice, Flag, Nodes, Number, Path, Secret, Share, Size, Text, Texts, Time, TimeOrNever};

const ANY: u64 = u64::MAX;
const LEVELS: &[&str] = &["one", "quorum", "all"];
const SSL_MODES: &[&str] = &["disable", "prefer", "require", "verify-ca", "verify-full"];

/// Every key, in the order in which they are documented.
pub const KEYS: &[Key] = &[
    Key::new(
        "server.host",
        Text,
        "IP address on which gRPC is served, or localhost; 0.0.0.0 is every address of the \
            machine. Addresses other than loopback need credentials (see security).",
    )
    .default("127.0.0.1"),
    Key::new(
        "server.port",
        Number(0, 65_535),
        "Port on which gRPC is served; 0 takes a free one, which the `ready` line shows.",
    )
    .default("50051"),
    Key::new("server.node_id", Text, "This coordinator's id, unique among the coordinators of a database.")
        .default("coordinator-1"),
    Key::new(
        "server.zone",
        Text,
        "The zone in which this coordinator runs, one of those of the storage nodes. Consistency policies and routing hooks \
            know it, say to read in the same zone.",
    )
    .otherwise("none"),
    Key::new(
        "server.data_dir",
        Path,
        "Folder of this coordinator's files: embedded stores, compiled plugins. Created if it \
            does not exist.",
    )
    .default("/var/lib/witan"),
    Key::new(
        "server.max_connections",
        Number(1, 1_000_000),
        "Most connections of clients at a time; further ones are closed at once.",
    )
    .default("10000"),
    Key::new(
        "server.max_connections_per_address",
        Number(0, 1_000_000),
        "Most of them from one address, or from one network of 64 bits in IPv6; 0 allows any number. Loopback addresses and \
            server.trusted_addresses may always have any number.",
    )
    .otherwise("half of server.max_connections"),
    Key::new(
        "server.trusted_addresses",
        Texts,
        "Addresses and ranges of addresses, such as proxies that many clients share, to which \
            server.max_connections_per_address does not apply.",
    )
    .sample("10.0.0.0/8"),
    Key::new("server.idle_timeout", Time, "A connection without a call for this long is closed; an open session is a call.")
        .default("10m"),
    Key::new(
        "server.max_watch_streams",
        Number(1, 1000),
        "Most streams of one connection that need no credential: Health/Watch and reflection. All connections together may \
            have 1000, those of one address 500.",
    )
    .default("16"),
    Key::new("server.read_timeout", Time, "Longest time for reading a request.").default("10s").idle(
        "a gRPC connection carries many requests and streams that may be idle; each request has \
            its own deadline (consistency.read_timeout), and dead peers are detected by keepalive",
    ),
    Key::new("server.write_timeout", Time, "Longest time for writing a response.").default("10s").idle(
        "a gRPC connection carries many requests and streams that may be idle; each request has \
            its own deadline (consistency.write_timeout), and dead peers are detected by keepalive",
    ),
    Key::new("server.shutdown_timeout", Time, "Longest shutdown; requests still in flight after it are aborted.")
        .default("30s"),
    Key::new(
        "database.url",
        Secret,
        "Address of the PostgreSQL database, such as \
            postgres://user:password@host/witan?sslmode=verify-full; replaces host, port, database, \
            user and password. Prefer url_file or the environment, since others may read this file.",
    )
    .sample("postgres://witan:pw@localhost/witan")
    .otherwise("see database.host"),
    Key::new("database.url_file", Path, "File with that address.").otherwise("see database.host"),
    Key::new(
        "database.direct_url",
        Secret,
        "Address of the PostgreSQL server itself, if database.url or host is that of a pooler such as PgBouncer: for migrations of \
            the schema, and for hearing of other coordinators' changes at once.",
    )
    .sample("postgres://witan:pw@localhost:5432/witan")
    .otherwise("through a pooler, changes are seen within half a second, and a schema that has to be migrated is refused"),
    Key::new("database.direct_url_file", Path, "File with that address.").otherwise("see database.direct_url"),
    Key::new(
        "database.host",
        Text,
        "Host of the PostgreSQL database that several coordinators share for their metadata.",
    )
    .otherwise("metadata is in a file under server.data_dir, for one coordinator"),
    Key::new("database.port", Number(1, 65_535), "Its port.").default("5432"),
    Key::new("database.database", Text, "Name of the database, in UTF-8.").default("witan"),
    Key::new("database.user", Text, "User of the database.").default("witan"),
    Key::new("database.password", Secret, "Password of that user. Prefer password_file or the environment.")
        .otherwise("no password"),
    Key::new("database.password_file", Path, "File with that password.").otherwise("see database.password"),
    Key::new(
        "database.ssl_mode",
        Choice(SSL_MODES),
        "TLS mode of the connection. Only verify-full proves the identity of the server. Required \
            unless the host is on this machine.",
    )
    .sample("verify-full")
    .otherwise("prefer, on this machine only"),
    Key::new("database.ca_file", Path, "PEM file of the certificate authorities for the database's certificate.")
        .otherwise("those of the operating system"),
    Key::new(
        "database.max_connections",
        Number(1, 100),
        "Most connections to the database, besides one that listens for changes.",
    )
    .default("8"),
    Key::new("database.min_connections", Number(0, 100), "Connections to keep open.")
        .default("0")
        .idle("connections are opened when they are needed and kept for the next operation"),
    Key::new("database.conn_max_lifetime", Time, "Age at which a connection is closed.")
        .default("30m")
        .idle("an idle connection is checked before it is used again, and closed after a fixed time"),
    Key::new("database.connect_timeout", Time, "Longest time for connecting.").default("3s"),
    Key::new(
        "database.operation_timeout",
        Time,
        "Longest time for an operation on the metadata, including all waiting.",
    )
    .default("5s"),
    Key::new(
        "redis.url",
        Secret,
        "Address of Redis, such as rediss://user:password@host:6379/0; several, separated by \
            commas, are those of a Redis Cluster, or of Sentinels. Replaces host, port and \
            everything else that it contains.",
    )
    .sample("redis://localhost:6379")
    .otherwise("see redis.host"),
    Key::new("redis.url_file", Path, "File with that address.").otherwise("see redis.host"),
    Key::new(
        "redis.addresses",
        Texts,
        "HOST:PORT of some servers of a Redis Cluster, or of the Sentinels (with \
            sentinel_master).",
    )
    .sample("redis-1:6379,redis-2:6379")
    .otherwise("see redis.host"),
    Key::new("redis.sentinel_master", Text, "Name of the master, if the addresses are those of Sentinels.")
        .otherwise("no Sentinels"),
    Key::new(
        "redis.host",
        Text,
        "Host of the Redis (7 or later) or Valkey that several coordinators share for idempotency \
            keys.",
    )
    .otherwise("idempotency keys are under server.data_dir, for one coordinator"),
    Key::new("redis.port", Number(1, 65_535), "Its port.").default("6379"),
    Key::new("redis.user", Text, "User, if not Redis's default user.").otherwise("the default user"),
    Key::new("redis.password", Secret, "Password; empty: none. Prefer password_file or the environment.")
        .otherwise("no password"),
    Key::new("redis.password_file", Path, "File with that password.").otherwise("see redis.password"),
    Key::new("redis.db", Number(0, 1_000_000), "Number of the database; 0 in a Cluster.").default("0"),
    Key::new("redis.tls", Flag, "Whether to connect to Redis over TLS.").default("false"),
    Key::new("redis.ca_file", Path, "PEM file of the certificate authorities for its certificate.")
        .otherwise("those of the operating system"),
    Key::new(
        "redis.key_prefix",
        Text,
        "Prefix of every key, so that several clusters can share a server: letters, digits and \
            _.-",
    )
    .default("witan"),
    Key::new("redis.timeout", Time, "Longest time for a step; after it, whether the step was done is unknown.")
        .default("1s"),
    Key::new("redis.connect_timeout", Time, "Longest time for connecting.").default("1s"),
    Key::new("redis.max_retries", Number(0, ANY), "How often a command is retried.").default("0").idle(
        "a step that may have been done is only retried by the idempotency protocol, which makes \
            that safe",
    ),
    Key::new("redis.pool_size", Number(0, ANY), "Connections to Redis.")
        .default("1")
        .idle("one connection carries the commands of all requests, pipelined"),
    Key::new("redis.min_idle_conns", Number(0, ANY), "Connections to keep open.")
        .default("0")
        .idle("one connection carries the commands of all requests, pipelined"),
    Key::new(
        "redis.small_records",
        Flag,
        "Whether idempotency records are written in their smaller form (docs/capacity.md), which the previous version neither finds nor \
            reads. Once such a record is to be written, the metadata store keeps the previous version from starting. In a cluster that was \
            created by an earlier version, set it to true once no process of that version runs any more, not even one that is cut off \
            from the database, and none will. Without effect while a coordinator of an earlier version is live; without it, also for a day \
            after.",
    )
    .otherwise("true, unless an earlier version has created the cluster's metadata"),
    Key::new(
        "hash_ring.virtual_nodes",
        Number(1, 4096),
        "Points on the ring of a storage node that sets no number of its own.",
    )
    .default("150"),
    Key::new("hash_ring.update_interval", Time, "Interval at which the nodes are read again.")
        .default("30s")
        .idle("changes are announced by the database and polled twice a second"),
    Key::new("consistency.default_level", Choice(LEVELS), "Consistency level of new tenants that choose none.")
        .default("quorum")
        .reloads(),
    Key::new("consistency.write_timeout", Time, "Deadline of a change whose client sets none; at most 10s.")
        .default("5s")
        .reloads(),
    Key::new("consistency.read_timeout", Time, "Deadline of a read whose client sets none; at most 10s.")
        .default("3s")
        .reloads(),
    Key::new(
        "consistency.repair_async",
        Flag,
        "Whether a read is answered before the stale replicas that it found are repaired, for new \
            tenants that do not choose; false makes their quorum reads linearizable.",
    )
    .default("true")
    .reloads(),
    Key::new(
        "consistency.ask_before_repeating",
        Flag,
        "Whether a quorum is asked about a `siblings` write before it is repeated, so that nothing deleted or replaced comes \
            back (docs/semantics.md). Writes a format that the previous version cannot read: in a cluster that was created by an \
            earlier version, set it to true once every process runs this version, and will not go back to the previous one. \
            Without effect while a coordinator of an earlier version is live.",
    )
    .otherwise("true, unless an earlier version has created the cluster's metadata"),
    Key::new(
        "consistency.fence_changes",
        Flag,
        "Whether a change of a tenant's ordering or minimum level, and its deletion, are fenced at the storage nodes, so that a \
            coordinator which is cut off from the metadata store cannot go on as before (docs/semantics.md). The previous version \
            does not open a storage node that has a fence: in a cluster that was created by an earlier version, set it to true once \
            every process runs this version, and will not go back to the previous one. Without effect while a coordinator of an \
            earlier version is live, and with embedded stores, whose coordinator is the only one.",
    )
    .otherwise("true, unless an earlier version has created the cluster's metadata"),
    Key::new(
        "cache.tenant_config_ttl",
        Time,
        "Time for which a tenant is served from the cache. Changes by other coordinators are \
            announced well before.",
    )
    .default("5m"),
    Key::new("cache.max_size", Number(1, 10_000_000), "Most cached tenants.").default("10000"),
    Key::new(
        "tenants.max_tokens",
        Number(0, 10_000),
        "Most API tokens of one tenant that its administrators may make; operators may make more for it. All tenants together \
            may have 10000.",
    )
    .default("200"),
    Key::new(
        "tenants.max_changes",
        Number(1, 48),
        "Most changes of one tenant that its administrators may have under way or waiting here at a time; further ones are \
            refused (OVERLOADED). All tenants together may have 48, and operators 256 of their own.",
    )
    .default("8"),
    Key::new(
        "tenants.max_repairs",
        Number(0, 2),
        "How many of the two repairs that may run here at a time the administrators of tenants may run, one of each tenant; the \
            others are for operators.",
    )
    .default("1"),
    Key::new(
        "tenants.max_scans",
        Number(1, 64),
        "Most pages of keys (ListKeys) of one tenant that may be read here at a time; further ones are refused (OVERLOADED). \
            All tenants together may have 64.",
    )
    .default("8"),
    Key::new(
        "tenants.weights",
        Texts,
        "TENANT=WEIGHT, from 1 to 100: while operations have to wait, tenants have a share of what may be under way, and of each \
            connection to a storage node, that is in proportion to their weights. Those that are not listed have 1.",
    )
    .sample("shop=4,reports=2")
    .reloads(),
    Key::new(
        "healing.anti_entropy",
        Flag,
        "Whether coordinators compare all replicas by themselves, routinely and after a node could not be reached, and send them what \
            they lack.",
    )
    .default("true")
    .reloads(),
    Key::new(
        "healing.compare_every",
        Time,
        "How often all replicas of each part of the ring are compared: 1m to 720h. Nodes keep digests of their records, so only what \
            differs is read.",
    )
    .default("4h")
    .reloads(),
    Key::new(
        "healing.scrub_every",
        TimeOrNever,
        "How often each record is read and compared on all of its replicas, which finds what has rotted on a disk: 1m to 720h. 0: \
            never.",
    )
    .default("168h")
    .reloads(),
    Key::new(
        "healing.rate",
        Size,
        "Bytes that a pass of healing reads from nodes per second: 64KiB to 1GiB. A coordinator has one pass of each kind at a time \
            at most: of comparison, of sending nodes what they have missed, of catching up with all of a node, and of filling new stores.",
    )
    .default("4MiB")
    .reloads(),
    Key::new(
        "healing.admit_after",
        TimeOrNever,
        "Time after which a node's new store is filled in place of the one on record, without an operator: long enough to mount a disk \
            that was merely not mounted. 0: new stores are filled only if an operator asks for it.",
    )
    .default("15m")
    .reloads(),
    Key::new(
        "healing.begin_after",
        Time,
        "Time after the start of a coordinator at which it begins to heal; coordinators that are restarted one after the other do not \
            take each other's work.",
    )
    .default("60s"),
    Key::new(
        "healing.tombstone_grace",
        Time,
        "How long ago a key must have been deleted until nothing is left of it on the disks: at least 25h, which is the longest life \
            of an idempotency key, with which a write may be repeated, and some minutes. The same for all coordinators.",
    )
    .default("36h")
    .reloads(),
    Key::new(
        "healing.collect_tombstones",
        Flag,
        "Whether the routine comparison drops what is left of deleted keys. It needs healing.anti_entropy.",
    )
    .default("true")
    .reloads(),
    Key::new(
        "placement.copy_rate",
        Size,
        "Bytes of records per second that are copied to other nodes when nodes or replication factors change: 64KiB to 16GiB; 0: as \
            many as the nodes take. One coordinator copies at a time.",
    )
    .default("32MiB")
    .reloads(),
    Key::new(
        "placement.full_disk",
        Number(50, 100),
        "How full the disk of a node that gets records may be, in percent, before copies pause; at five less, no tenant begins to move \
            there. 100: copies go on until the disk is full.",
    )
    .default("85")
    .reloads(),
    Key::new(
        "placement.leader_lease",
        Time,
        "Time for which the coordinator that leads placement changes keeps the lead without renewing it: 2s to 60s. When it has died, \
            another one goes on after this time.",
    )
    .default("15s")
    .reloads(),
    Key::new("metrics.enabled", Flag, "Whether metrics are served; liveness and readiness always are.").default("true"),
    Key::new("metrics.host", Text, "IP address on which metrics and health are served over HTTP, or localhost.")
        .default("127.0.0.1"),
    Key::new("metrics.port", Number(0, 65_535), "Port of metrics and health; 0 takes a free one.").default("9090"),
    Key::new("metrics.path", Text, "Path of the metrics.").default("/metrics"),
    Key::new(
        "metrics.header_timeout",
        Time,
        "Time within which an HTTP client must have sent the headers of its first request.",
    )
    .default("5s"),
    Key::new(
        "metrics.reserved_connections",
        Number(0, 128),
        "How many of the 256 HTTP connections are kept for addresses that have fewer than three, such as those of probes.",
    )
    .default("16"),
    Key::new(
        "logging.level",
        Text,
        "Log level: error, warn, info, debug, trace, or module=level, separated by commas.",
    )
    .default("info")
    .reloads(),
    Key::new("logging.format", Choice(&["console", "json"]), "Format of log lines: text, or one JSON object each.")
        .default("console"),
    Key::new(
        "storage_nodes",
        Nodes,
        "Storage nodes to record at the first start, each {id, host, port, virtual_nodes, zone}; add \
            later ones with `witan nodes add`. In the environment: node-1=10.0.0.1:50052,node-2=...",
    )
    .otherwise("the recorded ones"),
    Key::new("plugins.folder", Path, "Folder to watch for plugins.")
        .otherwise("plugins are uploaded through the API only"),
    Key::new(
        "plugins.signatures",
        Choice(&["off", "warn", "required"]),
        "Whether plugins must be signed (Ed25519). off: signatures are not looked at; warn: a wrong one is refused, and what is not \
            signed is logged; required: what is not signed by a known key is refused, when it is uploaded or found in the folder, and when \
            it is bound. What is in force stays.",
    )
    .default("off"),
    Key::new(
        "plugins.signing_keys",
        Texts,
        "Public keys with which plugins of the operator may be signed, each ID=KEY with the KEY in hexadecimal digits, beside those \
            added with `witan plugin keys add`.",
    )
    .sample("release=1f0c5e7a9b3d48626f8e0d1c2b4a69788796a5b4c3d2e1f00f1e2d3c4b5a6978"),
    Key::new(
        "plugins.warm_bytes",
        Size,
        "Bytes of the instances of plugins that wait for the next question, of all tenants together: their memories and tables. Beyond \
            it those are dropped that have waited longest, and the next question starts a new one. 0: none waits.",
    )
    .default("1GiB"),
    Key::new(
        "plugins.warm_bytes_per_tenant",
        Size,
        "The same of one tenant. An instance of a plugin in Rust or C has a megabyte or two, of one in Python or JavaScript ten or more.",
    )
    .default("256MiB"),
    Key::new(
        "durability",
        Choice(&["sync", "os"]),
        "What acknowledged writes of the embedded stores survive: sync, a power failure; os, only \
            the end of the process.",
    )
    .default("sync"),
    Key::new(
        "telemetry.otlp_endpoint",
        Text,
        "Address of an OpenTelemetry collector (OTLP over gRPC), such as http://127.0.0.1:4317.",
    )
    .sample("http://127.0.0.1:4317")
    .otherwise("no traces"),
    Key::new(
        "telemetry.sample_ratio",
        Share,
        "Share of requests that are traced, among those without a traceparent. A client's \
            decision (traceparent) is followed.",
    )
    .default("0.01"),
    Key::new("telemetry.service_name", Text, "Name of this service in traces.").default("witan"),
    Key::new(
        "security.allow_anonymous",
        Flag,
        "Serve clients without a credential. If false and clients are not identified, only \
            loopback is served.",
    )
    .default("false"),
    Key::new("security.tokens", Flag, "Whether API tokens (`witan token create`) are required.").default("false"),
    Key::new(
        "security.tls.cert_file",
        Path,
        "PEM file of the certificate chain for gRPC and HTTP. Read again when it changes.",
    )
    .otherwise("no TLS"),
    Key::new("security.tls.key_file", Path, "PEM file of its private key.").otherwise("needed with cert_file"),
    Key::new(
        "security.tls.client_ca_file",
        Path,
        "PEM file of the certificate authorities for client certificates; if set, clients without \
            one are refused.",
    )
    .otherwise("no client certificates"),
    Key::new(
        "security.jwt.algorithm",
        Choice(&["RS256", "ES256", "EdDSA", "HS256"]),
        "The only accepted algorithm of JSON web tokens.",
    )
    .otherwise("no JSON web tokens"),
    Key::new("security.jwt.key_file", Path, "PEM file of the issuer's public key; for HS256 a file with the secret.")
        .otherwise("needed with algorithm"),
    Key::new("security.jwt.issuer", Text, "Required value of the claim `iss`.").otherwise("needed with algorithm"),
    Key::new("security.jwt.audience", Text, "Value that the claim `aud` must equal or contain.")
        .otherwise("needed with algorithm"),
    Key::new("security.nodes.tls.ca_file", Path, "PEM file of the certificate authorities for storage nodes.")
        .otherwise("no TLS to nodes"),
    Key::new("security.nodes.tls.cert_file", Path, "PEM file of the client certificate for storage nodes.")
        .otherwise("no client certificate"),
    Key::new("security.nodes.tls.key_file", Path, "PEM file of its private key.").otherwise("needed with cert_file"),
    Key::new("security.nodes.tls.server_name", Text, "Name that the nodes' certificates must have.")
        .otherwise("the host of the address"),
    Key::new("security.nodes.shared_secret_file", Path, "File with the secret that coordinators and nodes share.")
        .otherwise("no secret"),
    Key::new("security.rate_limits.read", Number(0, 4_294_967_295), "Reads per second of one tenant; 0: no limit.")
        .default("0")
        .reloads(),
    Key::new(
        "security.rate_limits.write",
        Number(0, 4_294_967_295),
        "Writes and deletes per second of one tenant; 0: no limit.",
    )
    .default("0")
    .reloads(),
    Key::new("security.rate_limits.admin", Number(0, 4_294_967_295), "Changes of one tenant per second; 0: no limit.")
        .default("0")
        .reloads(),
    Key::new(
        "security.rate_limits.operator",
        Number(0, 4_294_967_295),
        "Changes of nodes and plugins per second, of all operators together; 0: no limit.",
    )
    .default("0")
    .reloads(),
    Key::new("security.audit.file", Path, "File of the audit log: changes and refusals, as JSON lines.")
        .otherwise("no audit log"),
    Key::new("security.audit.max_bytes", Size, "Size at which the file is rotated.").otherwise("64MiB"),
    Key::new("security.audit.keep", Number(0, 4_294_967_295), "Number of rotated files to keep.").otherwise("4"),
];
