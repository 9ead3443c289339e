"""Clients that send requests continuously while a cluster is changed, and report the results by phase.

    python load.py --address HOST:PORT [--address HOST:PORT]... --ca-file FILE --token-file FILE --tenant TENANT

Each client writes its own keys and reads them back. `--phase-file` names a file that contains the heading under which
requests are counted; the file is replaced, not modified. On SIGTERM the clients stop: every key is read once more, through
each coordinator, and the results are printed. The exit status is 0 if no request failed and no value was lost.

The clients do what docs/clients.md asks of a client: a deadline for each call, an idempotency key for each write, and
retries of whatever may be retried.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import random
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import grpc
from reflected import OPTIONS, Refused, Server

COORDINATOR = "witan.v1.CoordinatorService"
CLIENTS = 6
KEYS = 20
# Seconds. A write whose coordinator died holds its idempotency key for this long plus half a second.
DEADLINE = 2.0
# How often the program itself sends a request at most, and the status codes after which it retries.
SENDS = 5
AGAIN = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED"}
# Number of problems that are printed; the rest are only counted.
SHOWN = 10
# Seconds between two rounds of a client: this measures continuity, not throughput.
PAUSE = 0.01

# Supported by gRPC clients in every language: calls go to all coordinators in turn, and a call that one of them did not
# answer is sent to the next. Writes may be sent again because they carry an idempotency key.
SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": COORDINATOR}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.05s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}


class Attempts(grpc.AuthMetadataPlugin):
    """Counts how often gRPC sends a call, since it asks for credentials each time. Adds no credentials."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, context: grpc.AuthMetadataContext, callback: grpc.AuthMetadataPluginCallback) -> None:
        self.count += 1
        callback((), None)


@dataclasses.dataclass
class Phase:
    """Results under one heading."""

    seconds: list[float] = dataclasses.field(default_factory=list)
    sent_again_by_grpc: int = 0
    sent_again_by_program: int = 0
    failed: int = 0


class Account:
    """Results by phase."""

    def __init__(self, file: pathlib.Path | None):
        self._file = file
        self._lock = threading.Lock()
        self.phases: dict[str, Phase] = {}
        self.problems: list[str] = []
        self.lost = 0
        self.keys = 0
        self.now = self._read()

    def _read(self) -> str:
        return self._file.read_text().strip() if self._file else ""

    def look(self) -> None:
        """Checks whether another phase has started."""
        self.now = self._read()

    def count(self, phase: str, seconds: float, attempts: int, sends: int, failed: bool) -> None:
        with self._lock:
            entry = self.phases.setdefault(phase, Phase())
            entry.seconds.append(seconds)
            entry.sent_again_by_grpc += max(0, attempts - sends)
            entry.sent_again_by_program += sends - 1
            entry.failed += failed

    def problem(self, text: str, lost: int = 0) -> None:
        with self._lock:
            self.problems.append(text)
            self.lost += lost

    def show(self) -> bool:
        """Prints the results. True if there were requests and no problems."""
        print(f"{'':24}{'requests':>9}{'retries':>22}{'failed':>8}{'median':>10}{'slowest':>10}")
        print(f"{'':24}{'':9}{'by gRPC':>11}{'by program':>11}")
        for name, phase in self.phases.items():
            seconds = sorted(phase.seconds)
            print(
                f"{name:24}{len(seconds):>9}{phase.sent_again_by_grpc:>11}{phase.sent_again_by_program:>11}"
                f"{phase.failed:>8}{shown(seconds[len(seconds) // 2]):>10}{shown(seconds[-1]):>10}"
            )
        for problem in self.problems[:SHOWN]:
            print(problem)
        phases = self.phases.values()
        requests, failed = sum(len(phase.seconds) for phase in phases), sum(phase.failed for phase in phases)
        again = sum(phase.sent_again_by_grpc + phase.sent_again_by_program for phase in phases)
        slowest = max((max(phase.seconds) for phase in phases), default=0.0)
        print(
            f"{requests} requests: {again} retries, {failed} failed; the slowest took {shown(slowest)}.\n"
            f"{self.keys} keys read once more through each coordinator: {self.lost} values lost."
        )
        return requests > 0 and not self.problems


def shown(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


class Cluster:
    """How to connect to coordinators: over TLS, with a token."""

    def __init__(self, addresses: list[str], authority: bytes, token: str, server_name: str):
        self.addresses = addresses
        tls = grpc.ssl_channel_credentials(authority)
        self._credentials = grpc.composite_channel_credentials(tls, grpc.access_token_call_credentials(token))
        self._server_name = server_name

    def channel(self, addresses: list[str]) -> grpc.Channel:
        """A channel to these coordinators, whose connections are not shared with other channels."""
        options = OPTIONS + [
            ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
            # All these addresses use one server name. With a DNS name that has several addresses, it would be that name.
            ("grpc.default_authority", self._server_name),
            ("grpc.use_local_subchannel_pool", 1),
            # Reconnect to a restarted coordinator soon, not after minutes.
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        return grpc.secure_channel(f"ipv4:{','.join(addresses)}", self._credentials, options)


class Client:
    """Writes and reads its own keys, retries as needed, and counts."""

    def __init__(self, name: str, tenant: str, cluster: Cluster, account: Account, keeps: bool):
        self.name = name
        self._tenant = tenant
        self._cluster = cluster
        self._account = account
        self._keeps = keeps
        self._attempts = Attempts()
        self._counting = grpc.metadata_call_credentials(self._attempts)
        self._server = Server(",".join(cluster.addresses), cluster.channel(cluster.addresses))
        self._kv = self._server.service(COORDINATOR)
        # The values that each key may have: the acknowledged one, or, after a failed write, either.
        self.written: dict[str, set[bytes]] = {}

    def work(self, stopped: threading.Event) -> None:
        """Works until it is stopped."""
        try:
            self._work(stopped)
        except Exception as error:
            self._account.problem(f"{self.name} stopped: {error!r}")

    def _work(self, stopped: threading.Event) -> None:
        number = 0
        while not stopped.is_set():
            key, value = f"{self.name}-{number % KEYS}", f"{self.name}-{number}".encode()
            number += 1
            if self._write(key, value):
                self.written[key] = {value}
            else:
                self.written.setdefault(key, set()).add(value)
            self._check(key)
            # And an older key: three requests per round, so that with two coordinators each kind of request reaches both in turn.
            self._check(random.choice(list(self.written)))
            if not self._keeps:
                self.connect(self._cluster.addresses)
            stopped.wait(PAUSE)

    def audit(self) -> None:
        """Reads every key once more."""
        for key in self.written:
            self._check(key)

    def connect(self, addresses: list[str]) -> None:
        """Switches to new connections. The services are already known from the first one."""
        self._server.close()
        self._server.channel = self._cluster.channel(addresses)

    def close(self) -> None:
        self._server.close()

    def _write(self, key: str, value: bytes) -> bool:
        # One key per write, however often it is sent.
        idempotency_key = str(uuid.uuid4())
        send = lambda: self._kv.WriteKeyValue(
            tenant_id=self._tenant,
            key=key,
            value=value,
            idempotency_key=idempotency_key,
            timeout=DEADLINE,
            credentials=self._counting,
        )
        return self._carry_out(f"write {key}", send) is not None

    def _check(self, key: str) -> None:
        send = lambda: self._kv.ReadKeyValue(
            tenant_id=self._tenant, key=key, timeout=DEADLINE, credentials=self._counting
        )
        read = self._carry_out(f"read {key}", send)
        if read is not None and read.value not in self.written[key]:
            self._account.problem(f"lost: {key} is {read.value!r}, not one of {self.written[key]}", lost=1)

    def _carry_out(self, what: str, send: Callable[[], Any]) -> Any:
        """Sends until there is an answer; returns `None` on failure."""
        phase, started, before = self._account.now, time.monotonic(), self._attempts.count
        answer, sends = None, 0
        while answer is None and sends < SENDS:
            sends += 1
            try:
                answer = send()
            except Refused as refused:
                if refused.code not in AGAIN or sends == SENDS:
                    self._account.problem(f"failed: {what} ({phase}): {refused}")
                    break
                time.sleep(refused.retry_after or 0.1)
        took, attempts = time.monotonic() - started, self._attempts.count - before
        self._account.count(phase, took, attempts, sends, answer is None)
        return answer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", action="append", required=True, help="address of a coordinator, with an IP; repeat it for each")
    parser.add_argument("--ca-file", type=pathlib.Path, required=True, help="authority of the coordinators' certificates")
    parser.add_argument("--server-name", default="localhost", help="the name in their certificates [localhost]")
    parser.add_argument("--token-file", type=pathlib.Path, required=True, help="file with a token that may read and write the tenant")
    parser.add_argument("--tenant", required=True, help="tenant in which keys are written")
    parser.add_argument("--phase-file", type=pathlib.Path, help="file with the heading under which to count")
    arguments = parser.parse_args()

    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    token = arguments.token_file.read_text().strip()
    cluster = Cluster(arguments.address, arguments.ca_file.read_bytes(), token, arguments.server_name)
    account = Account(arguments.phase_file)
    # The last client opens new connections for every write, so that problems with new connections show up.
    clients = [
        Client(f"load-{number}", arguments.tenant, cluster, account, keeps=number < CLIENTS) for number in range(1, CLIENTS + 1)
    ]
    threads = [threading.Thread(target=client.work, args=(stopped,), daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    print(f"ready: {CLIENTS} clients", flush=True)
    while not stopped.wait(0.02):
        account.look()
    for thread in threads:
        thread.join()

    account.now = "read once more"
    for address in arguments.address:
        for client in clients:
            client.connect([address])
            client.audit()
    account.keys = sum(len(client.written) for client in clients)
    for client in clients:
        client.close()
    return 0 if account.show() else 1


if __name__ == "__main__":
    sys.exit(main())
