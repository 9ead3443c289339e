"""Calls every RPC of Witan, from a client that knows only an address.

    python tour.py [HOST:PORT] [--plugins FOLDER]

Each step prints what it did and checks the responses; the exit status is 0 if everything was as documented. It can be
run repeatedly against the same cluster, even one that is in use, because it creates new tenants for itself.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import json
import pathlib
import queue
import sys
import time
import zlib
from collections.abc import Callable
from typing import Any

from reflected import Refused, Server

COORDINATOR = "witan.v1.CoordinatorService"
PLUGINS = "witan.v1.PluginService"
NODE = "witan.v1.StorageNodeService"


def say(text: str) -> None:
    print(f"  {text}")


def refusal(call: Callable[[], Any], code: str, reason: str = "INVALID_REQUEST") -> Refused:
    """Makes a call that must fail with this code and reason, and returns the failure."""
    try:
        answer = call()
    except Refused as refused:
        assert (refused.code, refused.reason) == (code, reason), f"expected {code} {reason}, got {refused}"
        return refused
    raise AssertionError(f"expected {code} {reason}, got {answer!r}")


class Tour:
    def __init__(self, address: str, plugins: pathlib.Path):
        self.server = Server(address)
        self.folder = plugins
        self.kv = self.server.service(COORDINATOR)
        self.plugins = self.server.service(PLUGINS)
        self.stamp = f"{time.time_ns():x}"
        self.nodes: list[Server] = []

    def tenant(self, name: str, **choices: Any) -> str:
        """Creates a tenant for this run only."""
        tenant_id = f"tour-{name}-{self.stamp}"
        created = self.kv.CreateTenant(tenant_id=tenant_id, **choices)
        assert created.success and created.tenant_id == tenant_id and created.created_at > 0, created
        return tenant_id

    # ------------------------------------------------------------------ keys and values

    def register(self) -> None:
        """A tenant of registers: one value per key, totally ordered."""
        tenant = self.tenant("register", minimum_level="quorum", read_repair="blocking")
        missing = refusal(lambda: self.kv.ReadKeyValue(tenant_id=tenant, key="k"), "NOT_FOUND", "KEY_NOT_FOUND")
        assert missing.own["witan.v1.KeyNotFoundDetail"].context, "a missing key has a context too"
        say(f"a missing key is {missing.code} {missing.reason}, with a context in its details")

        written = self.kv.WriteKeyValue(tenant_id=tenant, key="k", value=b"one", consistency="quorum")
        assert written.success and written.key == "k" and written.context and written.idempotency_key, written
        assert written.replica_count >= 2 and written.consistency in ("quorum", "all") and not written.is_duplicate, written
        read = self.kv.ReadKeyValue(tenant_id=tenant, key="k", consistency="quorum")
        assert read.value == b"one" and read.context and not read.siblings, read
        say(f"written at {written.consistency} by {written.replica_count} replicas, read back: {read.value!r}")

        self.kv.WriteKeyValue(tenant_id=tenant, key="k", value=b"two", consistency="all", context=read.context)
        assert self.kv.ReadKeyValue(tenant_id=tenant, key="k", consistency="one").value == b"two"
        self.kv.WriteKeyValue(tenant_id=tenant, key="empty", value=b"")
        assert self.kv.ReadKeyValue(tenant_id=tenant, key="empty").value == b"", "an empty value is a value"
        large = bytes(range(256)) * 16384
        self.kv.WriteKeyValue(tenant_id=tenant, key="large", value=large)
        assert self.kv.ReadKeyValue(tenant_id=tenant, key="large").value == large
        say(f"an empty value and one of {len(large) >> 20} MiB are read back unchanged")

        deleted = self.kv.DeleteKeyValue(tenant_id=tenant, key="k")
        assert deleted.success and deleted.context, deleted
        gone = refusal(lambda: self.kv.ReadKeyValue(tenant_id=tenant, key="k"), "NOT_FOUND", "KEY_NOT_FOUND")
        context = gone.own["witan.v1.KeyNotFoundDetail"].context
        self.kv.WriteKeyValue(tenant_id=tenant, key="k", value=b"again", context=context)
        assert self.kv.ReadKeyValue(tenant_id=tenant, key="k").value == b"again"
        say("deleted, not found, and written again with the deletion's context")

    def siblings(self) -> None:
        """A tenant of siblings: no concurrent write is dropped."""
        tenant = self.tenant("siblings", conflict_mode="siblings")
        for value in (b'["a"]', b'["b"]'):
            self.kv.WriteKeyValue(tenant_id=tenant, key="k", value=value)
        read = self.kv.ReadKeyValue(tenant_id=tenant, key="k")
        assert sorted(s.value for s in read.siblings) == [b'["a"]', b'["b"]'] and read.value == b"", read
        assert read.vector_clock.entries and all(s.written_at_us > 0 for s in read.siblings), read
        say(f"two writes without a context are two siblings; events seen: {len(read.vector_clock.entries)} actors")
        self.kv.WriteKeyValue(tenant_id=tenant, key="k", value=b'["a","b"]', context=read.context)
        read = self.kv.ReadKeyValue(tenant_id=tenant, key="k")
        assert read.value == b'["a","b"]' and not read.siblings, read
        say("one write with the context of the read replaces both")
        self.kv.DeleteKeyValue(tenant_id=tenant, key="k", context=read.context)
        refusal(lambda: self.kv.ReadKeyValue(tenant_id=tenant, key="k"), "NOT_FOUND", "KEY_NOT_FOUND")

        other = self.tenant("other", conflict_mode="siblings")
        wrong = lambda: self.kv.WriteKeyValue(tenant_id=other, key="k", value=b"x", context=read.context)
        bad = refusal(wrong, "INVALID_ARGUMENT", "INVALID_REQUEST")
        assert "context" in bad.fields and bad.outcome == "not-applied", bad
        say("another tenant's context is refused")

    def idempotency(self) -> None:
        """A retry with the same idempotency key has one effect."""
        tenant = self.tenant("once", conflict_mode="siblings")
        send = lambda value=b"v": self.kv.WriteKeyValue(
            tenant_id=tenant, key="k", value=value, idempotency_key="order-17"
        )
        first, again = send(), send()
        assert not first.is_duplicate and again.is_duplicate, (first, again)
        assert first.context == again.context and first.idempotency_key == again.idempotency_key == "order-17"
        read = self.kv.ReadKeyValue(tenant_id=tenant, key="k")
        assert read.value == b"v" and not read.siblings, read
        say("sent twice, applied once: the second answer is the first one, marked as a duplicate")
        conflict = refusal(lambda: send(b"other"), "INVALID_ARGUMENT", "IDEMPOTENCY_KEY_CONFLICT")
        assert conflict.outcome == "not-applied", conflict
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            burst = lambda _: self.kv.WriteKeyValue(tenant_id=tenant, key="b", value=b"v", idempotency_key="burst")
            answers = list(pool.map(burst, range(8)))
        assert sum(not a.is_duplicate for a in answers) == 1, answers
        assert not self.kv.ReadKeyValue(tenant_id=tenant, key="b").siblings
        say("eight at once are one write and seven duplicates; another value under the same key is refused")
        deleted = lambda: self.kv.DeleteKeyValue(tenant_id=tenant, key="k", idempotency_key="order-17-cancelled")
        assert not deleted().is_duplicate and deleted().is_duplicate
        say("the same holds for deletes")

    def session(self) -> None:
        """Many operations on one stream; those of one key in the order of the stream."""
        tenant = self.tenant("session")
        outgoing: queue.SimpleQueue[Any] = queue.SimpleQueue()
        answers = self.kv.Session(iter(outgoing.get, None))
        count, number = 200, 0
        expected: dict[int, Callable[[Any], None]] = {}

        def ask(check: Callable[[Any], None], **operation: Any) -> Any:
            nonlocal number
            number += 1
            expected[number] = check
            return {"id": number, "timeout_ms": 10000, **operation}

        def is_written(answer: Any) -> None:
            assert answer.WhichOneof("result") == "write" and answer.write.success, answer

        def is_status(reason: str) -> Callable[[Any], None]:
            def check(answer: Any) -> None:
                assert answer.WhichOneof("result") == "status" and answer.status.code == 5, answer
                assert reason.encode() in answer.status.details, answer

            return check

        def is_value(value: bytes) -> Callable[[Any], None]:
            def check(answer: Any) -> None:
                assert answer.read.value == value, (answer, value)

            return check

        for index in range(count):
            key, value = f"k{index}", f"v{index}".encode()
            batch = [
                ask(is_written, write={"tenant_id": tenant, "key": key, "value": value}),
                ask(is_value(value), read={"tenant_id": tenant, "key": key}),
                ask(is_written, delete={"tenant_id": tenant, "key": key}),
                ask(is_status("KEY_NOT_FOUND"), read={"tenant_id": tenant, "key": key}),
            ]
            outgoing.put(self.kv.request("Session", requests=batch))
        outgoing.put(None)
        for batch in answers:
            for answer in batch.responses:
                expected.pop(answer.id)(answer)
        assert not expected, f"{len(expected)} operations were not answered"
        say(f"{number} operations on {count} keys over one stream: each key's write, read, delete and read in order")

    # ------------------------------------------------------------------ errors

    def errors(self) -> None:
        """Errors say what is wrong, in which field, and whether anything happened."""
        tenant = self.tenant("errors")
        nobody = lambda: self.kv.WriteKeyValue(tenant_id="nobody-" + self.stamp, key="k", value=b"v")
        unknown = refusal(nobody, "NOT_FOUND", "TENANT_NOT_FOUND")
        assert unknown.outcome == "not-applied", unknown
        wrong: list[tuple[str, dict[str, Any]]] = [
            ("tenant_id", {"tenant_id": "a:b", "key": "k"}),
            ("key", {"tenant_id": tenant, "key": ""}),
            ("key", {"tenant_id": tenant, "key": "k" * 1025}),
            ("value", {"tenant_id": tenant, "key": "k", "value": bytes((10 << 20) + 1)}),
            ("consistency", {"tenant_id": tenant, "key": "k", "consistency": "quorom"}),
            ("context", {"tenant_id": tenant, "key": "k", "context": b"made up"}),
            ("idempotency_key", {"tenant_id": tenant, "key": "k", "idempotency_key": "i" * 257}),
        ]
        for field, request in wrong:
            bad = refusal(lambda r=request: self.kv.WriteKeyValue(**r), "INVALID_ARGUMENT", "INVALID_REQUEST")
            assert field in bad.fields and bad.outcome == "not-applied", (field, bad.fields, bad.metadata)
            say(f"{field}: {bad.fields[field]}")
        refusal(lambda: self.kv.ReadKeyValue(tenant_id=tenant, key="k"), "NOT_FOUND", "KEY_NOT_FOUND")

    # ------------------------------------------------------------------ tenants and nodes

    def tenants(self) -> None:
        """Tenants: created, read, listed, changed where it is safe."""
        tenant = self.tenant("tenants", replication_factor=3, ordering="clock", default_level="one")
        exists = lambda: self.kv.CreateTenant(tenant_id=tenant)
        refusal(exists, "ALREADY_EXISTS", "TENANT_EXISTS")
        absent = f"absent-{self.stamp}"
        refusal(lambda: self.kv.GetTenant(tenant_id=absent), "NOT_FOUND", "TENANT_NOT_FOUND")
        got = self.kv.GetTenant(tenant_id=tenant)
        assert (got.replication_factor, got.conflict_mode, got.ordering) == (3, "register", "clock"), got
        assert (got.default_level, got.minimum_level, got.read_repair) == ("one", "one", "async"), got
        changed = self.kv.UpdateTenant(tenant_id=tenant, version=got.version, ordering="quorum", read_repair="blocking")
        assert changed.version > got.version and (changed.ordering, changed.read_repair) == ("quorum", "blocking")
        stale = lambda: self.kv.UpdateTenant(tenant_id=tenant, version=got.version, ordering="clock")
        refusal(stale, "ABORTED", "VERSION_CONFLICT")
        say(f"{tenant}: changed at version {got.version}; a second change based on that version is refused")

        listed, token, pages = set(), "", 0
        while True:
            page = self.kv.ListTenants(page_size=3, page_token=token)
            listed.update(t.tenant_id for t in page.tenants)
            pages, token = pages + 1, page.next_page_token
            if not token:
                break
        assert tenant in listed, listed
        say(f"{len(listed)} tenants on {pages} pages")

        many = lambda: self.kv.CreateTenant(tenant_id=f"many-{self.stamp}", replication_factor=5)
        if len(self.kv.ListStorageNodes().nodes) < 5:
            refusal(many, "FAILED_PRECONDITION", "INVALID_REPLICATION_FACTOR")
            say("five replicas on fewer nodes are refused")

    def maintenance(self) -> None:
        """Data is listed, compared on all of its replicas, and removed with its tenant."""
        tenant = self.tenant("maintenance", conflict_mode="siblings")
        for n in range(25):
            self.kv.WriteKeyValue(tenant_id=tenant, key=f"user:{n}", value=b"v", consistency="all")
        self.kv.WriteKeyValue(tenant_id=tenant, key="user:7", value=b"w", consistency="all")
        self.kv.DeleteKeyValue(tenant_id=tenant, key="user:8", consistency="all")
        self.kv.WriteKeyValue(tenant_id=tenant, key="cart", value=b"v", consistency="all")
        listed, token, pages = {}, "", 0
        while pages == 0 or token:
            page = self.kv.ListKeys(tenant_id=tenant, page_size=10, page_token=token, prefix="user:")
            listed.update({info.key: info.siblings for info in page.keys})
            pages, token = pages + 1, page.next_page_token
        assert set(listed) == {f"user:{n}" for n in range(25)} - {"user:8"}, listed
        assert [key for key, siblings in listed.items() if siblings] == ["user:7"], listed
        located = self.kv.LocateKey(tenant_id=tenant, key="user:1")
        assert all(replica.level for replica in located.replicas if replica.state), located
        say(f"LocateKey: token {located.token:016x}, {[f'{r.node_id}: {r.state}' for r in located.replicas]}")
        foreign = lambda: self.kv.ListKeys(tenant_id=tenant, page_token="made up")
        assert "page_token" in refusal(foreign, "INVALID_ARGUMENT").fields
        say(f"{len(listed)} keys on {pages} pages; deleted keys are not listed")

        *_, last = self.kv.Repair(tenant_id=tenant, timeout=300)
        assert last.phase == "done" and last.complete and last.scanned == 26 and not last.failed, last
        say(f"compared {last.scanned} records on all replicas: {last.repaired} were repaired")

        unsure = lambda: self.kv.DeleteTenant(tenant_id=tenant)
        assert "confirm" in refusal(unsure, "INVALID_ARGUMENT").fields
        deleted = self.kv.DeleteTenant(tenant_id=tenant, confirm=tenant)
        assert deleted.success and deleted.records_removed == 3 * 26 and not deleted.incomplete_nodes, deleted
        refusal(lambda: self.kv.ReadKeyValue(tenant_id=tenant, key="cart"), "NOT_FOUND", "TENANT_NOT_FOUND")
        refusal(lambda: self.kv.CreateTenant(tenant_id=tenant), "ALREADY_EXISTS", "TENANT_EXISTS")
        again = self.kv.DeleteTenant(tenant_id=tenant, confirm=tenant)
        assert again.deleted_at == deleted.deleted_at and again.records_removed == 0, again
        say(f"deleted with its {deleted.records_removed} records; its id is never given to another tenant")
        for info in self.reachable_nodes():
            node = Server(f"{info.host}:{info.port}").service(NODE)
            scanned = self.all_pages(node.ScanRange, tenant_id=tenant)
            assert not any(page.records for page in scanned), "nothing is left on any node"

    def placement(self) -> None:
        """Changes of the nodes and of replication factors: planned, made at once or by a migration, or refused with the reason."""
        try:
            self.kv.DeclareRestored(confirm="by mistake")
            raise AssertionError("declared by mistake")
        except Refused as refused:
            assert refused.code == "INVALID_ARGUMENT" and "confirm" in refused.fields, refused
            say(f"DeclareRestored: {refused.message}")
        before = self.kv.ListStorageNodes().nodes
        spare = f"spare-{self.stamp}"
        add = dict(node_id=spare, host="127.0.0.1", port=9, virtual_nodes=8)
        plan = self.kv.PlanMigration(add=add)
        [planned] = [node for node in plan.nodes if node.node_id == spare]
        assert planned.share_before == 0 < planned.share_after < 1 and plan.moved_share > 0, plan
        say(f"PlanMigration: {spare} would hold {planned.share_after:.1%} of all copies; problems: {list(plan.problems)}")
        for call in (self.kv.GetMigrationStatus, self.kv.CancelMigration):
            refusal(lambda call=call: call(migration_id="no migration"), "NOT_FOUND", "MIGRATION_NOT_FOUND")
        say(f"ListMigrations: {[m.migration_id for m in self.kv.ListMigrations(page_size=10).migrations]}")
        say(f"ListLeftovers: {len(self.kv.ListLeftovers(page_size=10).leftovers)}")
        assert self.kv.DropLeftovers(node_id=spare).dropped == 0, "it has never had anything"
        self.change("AddStorageNode", lambda: self.kv.AddStorageNode(**add))
        self.change("RemoveStorageNode", lambda: self.kv.RemoveStorageNode(node_id=spare))
        until = time.monotonic() + 120
        while [n.node_id for n in self.kv.ListStorageNodes().nodes] != [n.node_id for n in before]:
            assert time.monotonic() < until, "the node is listed still"
            time.sleep(0.1)
        first = before[0]
        lighter = dict(node_id=first.node_id, virtual_nodes=first.virtual_nodes - 1)
        planned = self.kv.PlanMigration(update=lighter)
        say(f"PlanMigration: with one virtual node less, {planned.moved_share:.1%} of all copies would move")
        for update in (lighter, dict(node_id=first.node_id, virtual_nodes=first.virtual_nodes)):
            self.change("UpdateStorageNode", lambda update=update: self.kv.UpdateStorageNode(**update))
        planned = self.kv.PlanMigration(replace=dict(node_id=first.node_id))
        say(f"PlanMigration: filling {first.node_id} would take {planned.fill.keys} records; problems: {list(planned.problems)}")
        refusal(lambda: self.kv.ReplaceStorageNode(node_id=first.node_id), "FAILED_PRECONDITION", "NOTHING_TO_REPLACE")
        for undrain in (False, True):
            say(f"DrainStorageNode: {self.kv.DrainStorageNode(node_id=first.node_id, undrain=undrain).message}")
        tenant = self.tenant("placement", replication_factor=1)
        self.change(
            "UpdateReplicationFactor",
            lambda: self.kv.UpdateReplicationFactor(tenant_id=tenant, new_replication_factor=3),
        )
        assert self.kv.GetTenant(tenant_id=tenant).replication_factor in (1, 3)

    def change(self, name: str, step: Callable[[], Any]) -> None:
        """A change that is made at once, or by a migration, which is given up again, or refused."""
        try:
            changed = step()
        except Refused as refused:
            assert refused.code in ("UNIMPLEMENTED", "NOT_FOUND") and refused.outcome == "not-applied", refused
            say(f"{name}: {refused.code}: {refused.message}")
            return
        if not changed.migration_id:
            say(f"{name}: done, because nothing has to move")
            return
        named = dict(migration_id=changed.migration_id)
        assert changed.migration_id in [m.migration_id for m in self.kv.ListMigrations(page_size=10).migrations]
        asked = self.kv.CancelMigration(confirm_undo=True, **named)
        assert asked.cancel_requested or asked.status in ("completed", "cancelled"), asked
        until = time.monotonic() + 120
        while (ended := self.kv.GetMigrationStatus(**named)).status not in ("completed", "cancelled"):
            assert time.monotonic() < until, ended
            time.sleep(0.1)
        say(f"{name}: migration {ended.migration_id} is {ended.status}")

    def storage_nodes(self) -> None:
        """Storage nodes: listed by the coordinator, and called directly."""
        tenant = self.tenant("nodes")
        self.kv.WriteKeyValue(tenant_id=tenant, key="k", value=b"seen from below", consistency="all")
        nodes = self.reachable_nodes()
        assert nodes and all(n.status == "active" for n in nodes), nodes
        for info in nodes:
            server = Server(f"{info.host}:{info.port}")
            self.nodes.append(server)
            node = server.service(NODE)
            described = node.Describe()
            assert described.node_id == info.node_id and len(described.store_id) == 16, described
            stored = node.Read(tenant_id=tenant, key="k", render=True)
            if not stored.HasField("record"):
                continue  # more nodes than replicas: this node is not a replica of the key
            assert "seen from below" in stored.rendering, stored
            repaired = node.Repair(tenant_id=tenant, key="k", record=stored.record)
            assert repaired.superseded is not None
            assert node.Read(tenant_id=tenant, key="k").record == stored.record, "merging a copy changes nothing"
            assert self.lane(server, described.node_id, tenant, b"k") == stored.record
            scanned = self.all_pages(node.ScanRange, tenant_id=tenant, node_id=info.node_id)
            records = [(r.position.key, r.record) for page in scanned for r in page.records]
            assert records == [(b"k", stored.record)], records
            leaves, first = [], 0
            while first < 1 << 64:
                digests = node.Digests(tenant_id=tenant, node_id=info.node_id, from_token=first)
                leaves += digests.leaves
                first = digests.to_token + 1
            assert [leaf.count for leaf in leaves] == [1], leaves
            dropped = self.all_pages(node.DropTenant, tenant_id=f"absent-{self.stamp}")
            assert not any(stretch.records for stretch in dropped)
            # At epoch 0 nothing changes: a fence that refused anybody would stay.
            fenced = node.RaiseFence(tenant_id=tenant, epoch=0, node_id=info.node_id)
            assert fenced.store_id == described.store_id, fenced
            try:
                node.ClearRange(tenant_id=tenant, epoch=0, node_id=info.node_id, purpose="CLEAR_PURPOSE_LEAVE")
                raise AssertionError("no step of a placement change is published by revision 0")
            except Refused as refused:
                assert refused.code == "INVALID_ARGUMENT" and "epoch" in refused.message, refused
        say(f"{len(nodes)} nodes described themselves; record, repair and a lane's answer agree on each")

    def all_pages(self, call: Callable[..., Any], **fields: Any) -> list[Any]:
        """Requests page after page from a node. Each page examines a bounded number of records, of any tenant."""
        pages = [call(**fields)]
        while pages[-1].HasField("next"):
            pages.append(call(after=pages[-1].next, **fields))
        return pages

    def reachable_nodes(self) -> Any:
        """The nodes, once all are reachable: a node with an overdue answer counts as unreachable for a moment."""
        until = time.monotonic() + 60
        while True:
            nodes = self.kv.ListStorageNodes().nodes
            if all(n.reachable for n in nodes):
                return nodes
            assert time.monotonic() < until, nodes
            time.sleep(0.05)

    def lane(self, server: Server, node_id: str, tenant: str, key: bytes) -> bytes:
        """Reads a record as coordinators do: a handshake, then a checksummed batch."""
        node = server.service(NODE)
        token = int.from_bytes(hashlib.sha256(tenant.encode() + b":" + key).digest()[:8], "big")
        ask = {"id": 7, "token": token, "tenant": tenant.encode(), "key": key, "epoch": 1, "read": {}}
        payload = server.message("witan.v1.RequestBatch")(requests=[ask]).SerializeToString()
        frame = {"codec": 1, "checksum": zlib.crc32(payload), "payload": payload}
        outgoing: queue.SimpleQueue[Any] = queue.SimpleQueue()
        hello = {"versions": [1], "coordinator_id": "tour", "node_id": node_id}
        outgoing.put(node.request("Exchange", hello=hello))
        answers = node.Exchange(iter(outgoing.get, None))
        welcome = next(answers).welcome
        assert welcome.version == 1 and welcome.node_id == node_id, welcome
        outgoing.put(node.request("Exchange", frame=frame))
        joined = b""
        for answer in answers:
            assert zlib.crc32(answer.frame.payload) == answer.frame.checksum
            joined += answer.frame.payload
            if not answer.frame.more:
                break
        outgoing.put(None)
        answers.cancel()
        batch = server.message("witan.v1.AnswerBatch").FromString(joined)
        assert [a.id for a in batch.answers] == [7], batch
        return batch.answers[0].record.record

    # ------------------------------------------------------------------ plugins

    def upload(self, component: bytes) -> Any:
        request = lambda **fields: self.plugins.request("UploadPlugin", **fields)
        digest = hashlib.sha256(component).hexdigest()
        chunks = [component[at : at + (64 << 10)] for at in range(0, len(component), 64 << 10)]
        parts = [request(manifest={"size": len(component), "digest": digest})] + [request(chunk=c) for c in chunks]
        plugin = self.plugins.UploadPlugin(iter(parts)).plugin
        assert plugin.digest == digest and plugin.state == "ready", plugin
        return plugin

    def plugin_life(self) -> None:
        """Plugins: uploaded, bound, swapped, rolled back, watched."""
        events = self.plugins.WatchPluginEvents(recent=True, timeout=600)
        cart = self.upload((self.folder / "shopping-cart.wasm").read_bytes())
        union = self.upload((self.folder / "set-union.wasm").read_bytes())
        assert (cart.name, cart.hook, cart.deterministic) == ("shopping-cart", "conflict-resolver", True), cart
        assert {cart.digest, union.digest} <= {p.digest for p in self.plugins.ListPlugins().plugins}
        assert self.plugins.GetPlugin(plugin=cart.digest[:12]).plugin.digest == cart.digest
        assert self.plugins.GetPlugin(plugin=f"set-union@{union.version}").plugin.name == "set-union"
        say(f"uploaded {cart.name} {cart.version} and {union.name} {union.version}: {cart.digest[:8]}, {union.digest[:8]}")
        refused = ("FAILED_PRECONDITION", "PLUGIN_REFUSED")
        for junk in (b"", b"(component)", b"\0asm\x0d\0\x01\0junk"):
            parts = [self.plugins.request("UploadPlugin", manifest={}), self.plugins.request("UploadPlugin", chunk=junk)]
            bad = refusal(lambda p=parts: self.plugins.UploadPlugin(iter(p)), *refused)
            say(f"{junk!r} is not a component: {bad.message}")

        tenant = self.tenant("plugins", conflict_mode="siblings")
        hook = "conflict-resolver"
        values = ({"items": {"tea": {"a": 1}}}, {"items": {"tea": {"b": 2}, "jam": {"b": 1}}})
        for value in values:
            self.kv.WriteKeyValue(tenant_id=tenant, key="cart", value=json.dumps(value).encode())
        read = lambda: self.kv.ReadKeyValue(tenant_id=tenant, key="cart")
        assert len(read().siblings) == 2
        bound = self.plugins.BindPlugin(tenant_id=tenant, hook=hook, plugin=cart.digest)
        assert bound.binding.name == "shopping-cart" and not bound.HasField("previous"), bound
        answer = read()
        assert json.loads(answer.value) == {"items": {"tea": {"a": 1, "b": 2}, "jam": {"b": 1}}}, answer
        assert answer.resolved_by.startswith(f"shopping-cart@{cart.digest[:8]}"), answer.resolved_by
        # A resolver that is bound and does not answer says why, and all siblings are returned.
        assert not answer.HasField("resolver_fault"), answer.resolver_fault.reason
        assert not answer.HasField("policy_fault"), answer.policy_fault.reason
        say(f"bound: two siblings are read as one cart, resolved by {answer.resolved_by[:22]}...")
        swapped = self.plugins.BindPlugin(tenant_id=tenant, hook=hook, plugin=f"set-union@{union.version}")
        assert swapped.previous.name == "shopping-cart" and swapped.binding.number > bound.binding.number, swapped
        assert len(read().siblings) == 2, "an object is not a set, so set-union keeps all"
        back = self.plugins.RollbackBinding(tenant_id=tenant, hook=hook)
        assert back.binding.name == "shopping-cart" and not read().siblings, back
        say("swapped for set-union, which keeps all siblings that are not sets, and rolled back")
        self.candidate(tenant, hook, union.digest)
        listed = self.plugins.ListBindings(tenant_id=tenant).bindings
        assert [(b.hook, b.name) for b in listed] == [(hook, "shopping-cart")] and listed[0].calls > 0, listed
        assert not listed[0].broken and not listed[0].breaker_open and listed[0].admitted_permille == 1000, listed
        bad = refusal(lambda: self.plugins.RemovePlugin(plugin=cart.digest), "FAILED_PRECONDITION", "PLUGIN_IN_USE")
        say(f"removing a plugin in use is refused: {bad.message}")
        self.policy()
        self.routing()
        self.remove()
        self.owners(tenant)
        self.watch(events, tenant)

    def candidate(self, tenant: str, hook: str, digest: str) -> None:
        """A plugin that is tried beside the one in force."""
        tried = self.plugins.BindPlugin(tenant_id=tenant, hook=hook, plugin=digest, mode="canary", percent=50, reason="a tour")
        assert tried.binding.name == "shopping-cart" and tried.binding.candidate.name == "set-union", tried
        report = self.plugins.GetBindingReport(tenant_id=tenant, hook=hook)
        assert report.active.calls > 0 and report.HasField("candidate"), report
        ended = self.plugins.DiscardCandidate(tenant_id=tenant, hook=hook)
        assert not ended.binding.HasField("candidate"), ended
        dry = self.plugins.TryPlugin(tenant_id=tenant, hook=hook, plugin=digest, sample=10)
        assert (dry.source, dry.asked, dry.differing, dry.complete) == ("conflicts", 1, 1, True), dry
        assert dry.cases[0].key == b"cart" and dry.cases[0].tried == "keeps all", dry.cases
        say(f"asked set-union without binding it: {dry.differing} of {dry.asked} answers differ from {dry.in_force[:22]}...")
        lines = [line for batch in self.plugins.TailPluginLogs(tenant_id=tenant, hook=hook) for line in batch.lines]
        say(f"the resolver has logged {len(lines)} lines")
        promote = lambda: self.plugins.PromoteBinding(tenant_id=tenant, hook=hook)
        refusal(promote, "NOT_FOUND", "CANDIDATE_NOT_FOUND")
        history = self.plugins.GetBindingHistory(tenant_id=tenant, hook=hook).entries
        assert [entry.what for entry in history[:2]] == ["discarded", "tried"], history
        say(f"tried set-union as a canary and discarded it, as the history tells: {history[0].outcome}")

    def policy(self) -> None:
        """A policy whose configuration is checked before it is put in force."""
        policy = self.upload((self.folder / "adaptive-latency.wasm").read_bytes())
        tenant = self.tenant("policy", minimum_level="quorum")
        bind = lambda text: self.plugins.BindPlugin(
            tenant_id=tenant, hook=policy.hook, plugin="adaptive-latency", configuration=text
        )
        bad = refusal(lambda: bind(b"slow-us = soon"), "FAILED_PRECONDITION", "PLUGIN_REFUSED")
        say(f"a configuration that the plugin refuses: {bad.message}")
        assert bind(b"slow-us = 1").binding.configuration == b"slow-us = 1"
        written = self.kv.WriteKeyValue(tenant_id=tenant, key="k", value=b"v", consistency="all")
        assert written.success and written.replica_count >= 2, written
        unbound = self.plugins.BindPlugin(tenant_id=tenant, hook=policy.hook, plugin="")
        assert unbound.previous.name == "adaptive-latency", unbound
        assert not self.plugins.ListBindings(tenant_id=tenant).bindings
        say(f"bound to a policy, a write at level all met {written.consistency}; unbound again")

    def routing(self) -> None:
        """A routing hook of one tenant: its records move, unless the cluster cannot move any."""
        tag = self.upload((self.folder / "hash-tag.wasm").read_bytes())
        tenant, key = self.tenant("routing"), "{user7}.name"
        self.kv.WriteKeyValue(tenant_id=tenant, key=key, value=b"Ada")
        planned = self.kv.PlanMigration(hook=dict(tenant_id=tenant, plugin=tag.digest)).hook
        assert (planned.keys_moving, planned.faults_on, planned.complete) == (1, "", True), planned
        try:
            bound = self.plugins.BindPlugin(tenant_id=tenant, hook=tag.hook, plugin=tag.digest)
        except Refused as refused:
            assert refused.code in ("UNIMPLEMENTED", "FAILED_PRECONDITION"), refused
            say(f"a routing hook: {refused.code}: {refused.message}")
            return
        until = time.monotonic() + 120
        while (moved := self.kv.GetMigrationStatus(migration_id=bound.migration_id)).status != "completed":
            assert moved.type == "routing_hook" and time.monotonic() < until, moved
            time.sleep(0.1)
        assert self.kv.ReadKeyValue(tenant_id=tenant, key=key).value == b"Ada"
        say(f"bound to a routing hook, the records of a tenant were moved by migration {moved.migration_id}")

    def remove(self) -> None:
        """A plugin that is not in use can be removed. A custom section gives this one a digest that nothing else uses."""
        component = (self.folder / "hash-tag.wasm").read_bytes()
        name = b"\x04tour" + self.stamp.encode()
        own = self.upload(component + b"\x00" + bytes([len(name)]) + name)
        self.plugins.RemovePlugin(plugin=own.digest)
        assert own.digest not in {p.digest for p in self.plugins.ListPlugins().plugins}
        say(f"{own.name} was uploaded with a unique digest and removed")

    def owners(self, tenant: str) -> None:
        """Plugins of a tenant, and the keys with which they may be signed."""
        request = lambda **fields: self.plugins.request("UploadPlugin", **fields)
        union = (self.folder / "set-union.wasm").read_bytes()
        parts = [request(manifest={"tenant_id": tenant}), request(chunk=union)]
        bad = refusal(lambda: self.plugins.UploadPlugin(iter(parts)), "ALREADY_EXISTS", "PLUGIN_NAME_TAKEN")
        say(f"a tenant has no plugin under a name of the operator's: {bad.message}")
        seen = self.plugins.ListPlugins(tenant_id=tenant).plugins
        assert "set-union" in {p.name for p in seen} and not any(p.tenant_id for p in seen), seen
        assert self.plugins.GetPlugin(plugin="operator/set-union", tenant_id=tenant).plugin.name == "set-union"
        self.plugins.GrantPluginClass(tenant_id=tenant, **{"class": "interpreted"}, granted=True)
        granted = self.plugins.ListPlugins(tenant_id=tenant).grants
        assert [(grant.tenant_id, getattr(grant, "class")) for grant in granted] == [(tenant, "interpreted")], granted
        self.plugins.GrantPluginClass(tenant_id=tenant, **{"class": "interpreted"}, granted=False)
        assert not self.plugins.ListPlugins(tenant_id=tenant).grants
        say("a class of limits was granted to a tenant and taken again")
        # The base point of the curve: a good public key, whose private one is known to everybody.
        public = bytes([0x58] + [0x66] * 31)
        self.plugins.AddSigningKey(tenant_id=tenant, key_id="release", public_key=public)
        keys = self.plugins.ListSigningKeys(tenant_id=tenant).keys
        assert [(k.tenant_id, k.key_id, k.public_key) for k in keys] == [(tenant, "release", public)], keys
        self.plugins.RemoveSigningKey(tenant_id=tenant, key_id="release")
        gone = ("NOT_FOUND", "SIGNING_KEY_NOT_FOUND")
        refusal(lambda: self.plugins.RemoveSigningKey(tenant_id=tenant, key_id="release"), *gone)
        say("a signing key of a tenant was added, listed and removed")

    def watch(self, events: Any, tenant: str) -> None:
        """The events report all of it, in order."""
        seen: list[Any] = []
        for event in events:
            if event.tenant_id == tenant:
                seen.append(event)
            if event.kind == "rolled_back" and event.tenant_id == tenant:
                break
        events.cancel()
        assert "activated" in {event.kind for event in seen} and all(event.at_ms > 0 for event in seen), seen
        say("its events: " + ", ".join(f"{event.kind} {event.name}" for event in seen))

    # ------------------------------------------------------------------ all of it

    def run(self) -> None:
        steps = [
            self.placement,
            self.register,
            self.siblings,
            self.idempotency,
            self.session,
            self.errors,
            self.tenants,
            self.maintenance,
            self.storage_nodes,
            self.plugin_life,
        ]
        print(f"{self.server.address} serves {', '.join(self.server.services())}")
        for step in steps:
            print((step.__doc__ or "").splitlines()[0])
            step()
        self.complete()

    def complete(self) -> None:
        """No RPC that reflection lists was left out."""
        called = set().union(*(server.called for server in [self.server, *self.nodes]))
        listed = {f"{COORDINATOR}/{m}" for m in self.server.methods(COORDINATOR)}
        listed |= {f"{PLUGINS}/{m}" for m in self.server.methods(PLUGINS)}
        listed |= {f"{NODE}/{m}" for m in self.nodes[0].methods(NODE)}
        assert not listed - called, f"never called: {sorted(listed - called)}"
        print(f"All {len(listed)} RPCs worked as documented.")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address", nargs="?", default="127.0.0.1:50051", help="the coordinator, HOST:PORT")
    folder = pathlib.Path(__file__).resolve().parents[2] / "target" / "plugins"
    parser.add_argument("--plugins", type=pathlib.Path, default=folder, help="folder of the built plugins")
    arguments = parser.parse_args()
    Tour(arguments.address, arguments.plugins).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
