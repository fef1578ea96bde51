"""The aggregator over HTTP: protocol version 1 (``server/PROTOCOL.md``), as a device speaks it.

Every call is tried again while the reason for its failure may pass; all of them may be repeated without harm.
"""

from __future__ import annotations

import contextlib
import random
import ssl
import threading
import urllib.parse
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from pfl_mobile.device.backoff import Backoff, retry_after
from pfl_mobile.device.faults import (
    answer_fault,
    connection_fault,
    environment_fault,
    plain_fault,
)
from pfl_mobile.errors import (
    ConfigError,
    MissingDependencyError,
    ProtocolError,
    ServerProblem,
    UnreachableError,
)
from pfl_mobile.files.reading import parse_json
from pfl_mobile.protocol.answers import judge
from pfl_mobile.protocol.bodies import (
    Body,
    Challenge,
    CheckedIn,
    CheckIn,
    Decline,
    Enrolled,
    Enrolment,
    EvaluationReport,
    FederationInfo,
    LatestVersion,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import httpx2

    from pfl_mobile.errors import NotTheAggregatorError

BodyT = TypeVar("BodyT", bound=Body)
T = TypeVar("T")

#: No JSON answer is as large as this.
MAX_ANSWER_BYTES = 16 << 20
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass
class Traffic:
    """Bytes of bodies, those of failed tries included."""

    up: int = 0
    down: int = 0


@dataclass
class Client:
    """Requests of one device. Close it, or use it in a ``with`` block.

    Args:
        server: address, for instance ``https://pfl.example.org``.
        credential: sent along once there is one; set it after the enrolment.
        backoff: between tries.
        timeout_s: for connecting, and between two pieces of an answer.
        ca: PEM file of the authorities to trust in place of the system's.
        allow_http: permit plain HTTP to other machines: anybody on the way can then read the credential.
        cancel: when set, no further try is made.
        transport: of httpx2, for tests.

    Attributes:
        reached: whether an answer of the aggregator has come. From then on the address is known to be right, and what
            else answers there is of the network that the device is in.

    Raises:
        ConfigError: the address is none, or plain HTTP to another machine; a proxy in the environment is none.
        MissingDependencyError: httpx2 is not installed.
    """

    server: str
    credential: str | None = None
    backoff: Backoff = field(default_factory=Backoff)
    timeout_s: float = 60.0
    ca: str | None = None
    allow_http: bool = False
    cancel: threading.Event = field(default_factory=threading.Event)
    transport: httpx2.BaseTransport | None = None
    traffic: Traffic = field(default_factory=Traffic)
    reached: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        """Open the connection pool."""
        try:
            import httpx2
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                "taking part needs the package 'httpx2'", mend="pip install 'pfl-mobile[device]'"
            ) from error
        self.server = self.server.rstrip("/")
        local = _check_address(self.server, self.allow_http)
        self._errors = httpx2.TransportError, UnicodeError
        self._broken = httpx2.RemoteProtocolError, httpx2.ReadError
        self._draw = random.Random()
        verify = _trust(self.ca) if self.ca else self.server.startswith("https")
        try:
            httpx2.URL(self.server)
        except httpx2.InvalidURL as error:
            raise _no_address(self.server) from error
        try:
            if verify is True:
                verify = httpx2.create_ssl_context(trust_env=not local)
            if isinstance(verify, ssl.SSLContext):
                # not every system's OpenSSL is set up to refuse what came before
                verify.minimum_version = ssl.TLSVersion.TLSv1_2
            self._http = httpx2.Client(
                base_url=self.server,
                timeout=httpx2.Timeout(self.timeout_s, connect=min(self.timeout_s, 15.0)),
                verify=verify,
                trust_env=not local,  # a proxy cannot know this machine's own addresses
                transport=self.transport,
                headers={"User-Agent": "pfl-mobile", "Accept-Encoding": "identity"},
            )
        except (ImportError, OSError, ValueError, httpx2.InvalidURL) as error:
            raise environment_fault(error) from None

    def __enter__(self) -> Client:
        """The client itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # -- the protocol

    def federation(self) -> FederationInfo:
        """What the federation trains, how to enrol, what protects updates."""
        return self._ask(FederationInfo, "GET", "/v1/federation")

    def challenge(self) -> Challenge:
        """What an attestation must be bound to."""
        return self._ask(Challenge, "POST", "/v1/challenges")

    def enrol(self, enrolment: Enrolment) -> Enrolled:
        """Become a device; the credential in the answer is told once.

        A lost answer leaves a device behind that nobody has the credential of; it does no harm.
        """
        return self._ask(Enrolled, "POST", "/v1/devices", enrolment)

    def check_in(self, facts: CheckIn) -> CheckedIn:
        """Ask for a task; asking again gives the same one."""
        return self._ask(CheckedIn, "POST", "/v1/check-in", facts)

    def decline(self, task: str, decline: Decline) -> None:
        """Say that no update will come."""
        self._tell("POST", f"/v1/tasks/{task}/decline", decline)

    def report(self, task: str, report: EvaluationReport) -> None:
        """Send sums of metrics; counted once."""
        self._tell("POST", f"/v1/tasks/{task}/evaluation", report)

    def latest(self) -> LatestVersion:
        """The version that is served now."""
        return self._ask(LatestVersion, "GET", "/v1/versions/latest")

    def leave(self) -> None:
        """Take part no more: the aggregator forgets the credential."""
        self._tell("DELETE", "/v1/devices/me", None)

    # -- requests

    def retrying(self, action: Callable[[], T], progress: Callable[[], int] = lambda: 0) -> T:
        """Do something until it works.

        Args:
            action: raises UnreachableError or a passing ServerProblem to be called again after a pause.
            progress: grows when something was gained; failures are counted from the last gain on.

        Raises:
            UnreachableError, ServerProblem: the last failure.
        """
        failures, best = 0, progress()
        while True:
            try:
                return action()
            except (UnreachableError, ServerProblem) as error:
                if isinstance(error, ServerProblem) and not error.passing:
                    raise
                now = progress()
                failures, best = (1, now) if now > best else (failures + 1, best)
                if failures >= self.backoff.attempts:
                    raise
                if self.cancel.wait(self.backoff.pause(failures, error.retry_after_s, self._draw)):
                    raise

    def pause(self, failures: int, told_s: float | None = None) -> float:
        """Seconds to wait after so many failures in a row, and at least as long as an answer asks for."""
        return self.backoff.pause(failures, told_s, self._draw)

    @contextlib.contextmanager
    def exchange(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        content: bytes | Iterable[bytes] | None = None,
    ) -> Iterator[httpx2.Response]:
        """One request, whose answer is read by the caller (``pieces``); no further try.

        Raises:
            UnreachableError: no connection, or it broke or timed out, also while the answer is read; or what lies
                between says that it has none.
            NotTheAggregatorError: something else answers.
            TooLargeOnTheWayError: something between refuses a body of this size.
            ServerProblem: the aggregator refuses.
            ProtocolError: a path to another place, or an answer of another protocol.
        """
        if not path.startswith("/") or path.startswith("//"):
            raise ProtocolError(
                f"the aggregator names the address {path!a}", mend="it must be one of its own paths"
            )
        sent = dict(headers or {})
        if self.credential is not None:
            sent["Authorization"] = f"Bearer {self.credential}"
        try:
            with self._http.stream(method, path, headers=sent, content=content) as response:
                verdict = judge(response.status_code, response.headers)
                if verdict.kind == "problem":
                    self.reached = True
                    raise _problem(response.status_code, response.headers, self.read(response))
                if verdict.kind != "answer":
                    status, length = (
                        response.status_code,
                        int(response.request.headers.get("Content-Length", 0)),
                    )
                    # servers of TLS answer plain HTTP with a page that has this status
                    found = self._plain_fault() if status == 400 else None
                    raise found or answer_fault(verdict, self.server, path, status, response.headers, length)
                self.reached = True
                yield response
        except self._broken as error:
            raise self._plain_fault() or connection_fault(error, self.server) from error
        except self._errors as error:
            raise connection_fault(error, self.server) from error

    def pieces(self, response: httpx2.Response) -> Iterator[bytes]:
        """The body of an answer, counted."""
        for piece in response.iter_raw(1 << 16):
            self.traffic.down += len(piece)
            yield piece

    def _plain_fault(self) -> NotTheAggregatorError | None:
        """What a port speaks in place of plain HTTP; None where it was HTTP before, or may be."""
        plain = self.server.startswith("http:") and not self.reached and self.transport is None
        return plain_fault(self.server) if plain else None

    def read(self, response: httpx2.Response) -> bytes:
        """The whole body of an answer that is no tensors.

        Raises:
            ProtocolError: it is larger than any such body.
        """
        body = bytearray()
        for piece in self.pieces(response):
            body += piece
            if len(body) > MAX_ANSWER_BYTES:
                raise ProtocolError(
                    f"an answer of {self.server} has more than {MAX_ANSWER_BYTES} bytes",
                    mend="check the server's address",
                )
        return bytes(body)

    def _call(self, method: str, path: str, body: Body | None, use: Callable[[bytes], T]) -> T:
        """Send a JSON body and use that of the answer; tried again while that may help."""
        content = None if body is None else body.model_dump_json(by_alias=True).encode()
        headers = {} if content is None else {"Content-Type": "application/json"}

        def once() -> T:
            self.traffic.up += len(content or b"")
            with self.exchange(method, path, headers, content) as response:
                return use(self.read(response))

        return self.retrying(once)

    def _ask(self, kind: type[BodyT], method: str, path: str, body: Body | None = None) -> BodyT:
        return self._call(method, path, body, lambda data: parse(kind, data, f"{method} {path}"))

    def _tell(self, method: str, path: str, body: Body | None) -> None:
        self._call(method, path, body, lambda _: None)


def parse(kind: type[BodyT], data: bytes, what: str) -> BodyT:
    """An answer's body; fields that a later server adds are ignored.

    Raises:
        UnreachableError: it is no JSON, so a part of it was lost on the way.
        ProtocolError: it is not such a body.
    """
    try:
        return kind.model_validate_json(data, extra="ignore")
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise UnreachableError(
                f"the answer to {what} did not arrive whole: its {len(data)} bytes are no JSON",
                mend="try again; if it stays so, something between changes the bytes",
            ) from error
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise ProtocolError(
            f"the answer to {what} is not of protocol version 1: {where}: {first['msg']}",
            mend="check the server's address, and update pfl-mobile if the server is newer",
        ) from error


def _problem(status: int, headers: Mapping[str, str], body: bytes) -> ServerProblem:
    """The error that an answer is; one without a problem's JSON (to HEAD, or cut off) is named by its status."""
    found: dict[str, Any] = {}
    with contextlib.suppress(ValueError):
        value = parse_json(body)
        found = value if isinstance(value, dict) else {}

    def text(name: str, default: str) -> str:
        value = found.get(name)
        return value[:1000] if isinstance(value, str) and value else default

    return ServerProblem(
        text("code", f"http-{status}"),
        status,
        f"the aggregator refuses: {text('detail', text('title', f'status {status}'))}",
        mend=text("mend", "see the aggregator's log"),
        retry_after_s=retry_after(headers.get("Retry-After")),
    )


def _check_address(server: str, allow_http: bool) -> bool:
    """Refuse what is no safe address; whether it is this machine."""
    try:
        parts = urllib.parse.urlsplit(server)
        host, _ = parts.hostname, parts.port  # reading the port refuses one that is none
        (host or "").encode("idna")  # as it will be looked up
    except ValueError:
        raise _no_address(server) from None
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            "the server's address holds a user or password", mend="leave it out: devices have credentials"
        )
    odd = any(c.isspace() or not c.isprintable() for c in server)
    if not host or odd or parts.scheme not in ("http", "https") or parts.query or parts.fragment:
        raise _no_address(server)
    local = host in _LOOPBACK
    if parts.scheme == "http" and not local and not allow_http:
        raise ConfigError(
            f"{server} is plain HTTP to another machine: anybody on the way could take the credential",
            mend="use https://, or allow it (--allow-http) in a network that you trust",
        )
    return local


def _no_address(server: str) -> ConfigError:
    return ConfigError(
        f"{server!r} is not the address of a server", mend="give one like https://pfl.example.org"
    )


def _trust(ca: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"cannot read certificates from {ca}: {error}", mend="give a PEM file") from error
