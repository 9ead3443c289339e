"""A client for any gRPC server with reflection: no generated stubs, no .proto files.

The server describes its services and messages; the classes are created from that at run time. Errors are decoded with
their google.rpc details.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

# The largest messages that a coordinator sends and accepts.
OPTIONS = [("grpc.max_receive_message_length", 40 << 20), ("grpc.max_send_message_length", 40 << 20)]


class Refused(Exception):
    """A failed call: its status and its decoded details."""

    def __init__(self, code: str, status: status_pb2.Status, server: "Server"):
        self.code = code
        self.message = status.message
        self.reason = ""
        self.metadata: dict[str, str] = {}
        self.fields: dict[str, str] = {}
        self.retry_after: float | None = None
        self.own: dict[str, Message] = {}
        for detail in status.details:
            self._take(detail, server)
        super().__init__(f"{code} {self.reason}: {self.message}")

    def _take(self, detail: Any, server: "Server") -> None:
        info = error_details_pb2.ErrorInfo()
        bad = error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            self.reason, self.metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad):
            self.fields = {v.field: v.description for v in bad.field_violations}
        elif detail.Unpack(retry):
            self.retry_after = retry.retry_delay.ToTimedelta().total_seconds()
        else:
            name = detail.type_url.rpartition("/")[2]
            self.own[name] = server.message(name).FromString(detail.value)

    @property
    def outcome(self) -> str:
        """Whether a failed change happened: "not-applied" or "in-doubt"."""
        return self.metadata.get("outcome", "")


class Server:
    """A server at one address, with the services that it describes."""

    def __init__(self, address: str, channel: grpc.Channel | None = None):
        """`channel`: the channel to use; defaults to one without TLS and credentials, for loopback."""
        self.address = address
        self.channel = channel or grpc.insecure_channel(address, OPTIONS)
        self.database = ProtoReflectionDescriptorDatabase(self.channel)
        self.pool = descriptor_pool.DescriptorPool(self.database)
        self.called: set[str] = set()

    def services(self) -> list[str]:
        """Full names of the services served."""
        return sorted(self.database.get_services())

    def methods(self, service: str) -> list[str]:
        """Names of a service's methods."""
        return [method.name for method in self.pool.FindServiceByName(service).methods]

    def message(self, name: str) -> Any:
        """The class of the message with this full name."""
        return message_factory.GetMessageClass(self.pool.FindMessageTypeByName(name))

    def service(self, name: str) -> "Service":
        """The service with this full name."""
        return Service(self, name)

    def close(self) -> None:
        """Closes the channel."""
        self.channel.close()


class Service:
    """Every method of a service as an attribute: `service.GetTenant(tenant_id="x")`.

    A method with streaming requests takes an iterable of request messages (`service.request("Session", ...)` creates one);
    a method with streaming responses returns an iterator that has `cancel()`.
    """

    def __init__(self, server: Server, name: str):
        self._server = server
        self._name = name
        self._methods = {m.name: m for m in server.pool.FindServiceByName(name).methods}

    def request(self, method: str, **fields: Any) -> Message:
        """A request message of `method`."""
        return message_factory.GetMessageClass(self._methods[method].input_type)(**fields)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._methods:
            raise AttributeError(f"{self._name} has no method {name}")
        method = self._methods[name]
        shape = ("stream" if method.client_streaming else "unary") + ("_stream" if method.server_streaming else "_unary")
        reply = message_factory.GetMessageClass(method.output_type)
        call = getattr(self._server.channel, shape)(
            f"/{self._name}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=reply.FromString,
        )

        def invoke(
            requests: Iterable[Message] | None = None,
            timeout: float = 60,
            credentials: grpc.CallCredentials | None = None,
            **fields: Any,
        ) -> Any:
            self._server.called.add(f"{self._name}/{name}")
            request = requests if requests is not None else self.request(name, **fields)
            try:
                answer = call(request, timeout=timeout, credentials=credentials)
                return Answers(answer, self._server) if method.server_streaming else answer
            except grpc.RpcError as error:
                raise refused(error, self._server) from None

        return invoke


class Answers(Iterator[Message]):
    """A stream of answers. If it ends with an error, that error is raised as a `Refused`."""

    def __init__(self, call: Any, server: Server):
        self._call = call
        self._server = server

    def __next__(self) -> Message:
        try:
            return next(self._call)
        except grpc.RpcError as error:
            raise refused(error, self._server) from None

    def cancel(self) -> None:
        """Cancels the call."""
        self._call.cancel()


def refused(error: Any, server: Server) -> Refused:
    """The error of a call, with its details."""
    status = status_pb2.Status(message=error.details() or "")
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status.ParseFromString(value)
    return Refused(error.code().name, status, server)
