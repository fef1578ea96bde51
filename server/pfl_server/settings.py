"""How one server runs: addresses, places, limits. What it computes is in ``config.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_serializer

from pfl_mobile.fields import Frozen, Positive

Access = Literal["public", "admin", "off"]


class LimitsConfig(Frozen, hide_input_in_errors=True):
    """What clients may ask of one process. Each counts by itself, so ``n`` processes allow ``n`` times as much.

    Rates are requests a second that are sustained, bursts how many may come at once before.

    Attributes:
        json_bytes: largest body of all requests but uploads of updates.
        min_rate: bytes a second that a body, or the reading of an answer, must bring on average, once ``grace_s``
            seconds are over. So no request takes longer than ``grace_s`` plus its bytes over ``min_rate``.
        silence_s: seconds after which the next bytes must come, or be read, however fast those before were.
        device_open: requests of one device that are open at a time.
        address_open: those of one address whose credential was not seen to be valid before.
        open: all requests that are open at a time, but for health checks.
        connections, address_connections: connections, in all and of one address (but a trusted proxy). The one that
            has waited longest for a request gives way to a new one.
        device_rate, device_burst: of one device.
        address_rate, address_burst: of one address (IPv6: one /64 network), over all requests whose credential was
            not seen to be valid before.
        enrol_rate, enrol_burst: enrolments and challenges of one address, besides.
        tracked: addresses and devices that are remembered; those not seen for longest are forgotten first.
    """

    json_bytes: Annotated[int, Field(ge=1024)] = 64 << 10
    min_rate: Positive = 1024.0
    grace_s: Positive = 10.0
    silence_s: Positive = 10.0
    device_open: Annotated[int, Field(ge=1)] = 4
    address_open: Annotated[int, Field(ge=1)] = 256
    open: Annotated[int, Field(ge=1)] = 512
    connections: Annotated[int, Field(ge=1)] = 2048
    address_connections: Annotated[int, Field(ge=1)] = 512
    device_rate: Positive = 5.0
    device_burst: Annotated[int, Field(ge=1)] = 60
    address_rate: Positive = 20.0
    address_burst: Annotated[int, Field(ge=1)] = 300
    enrol_rate: Positive = 2.0
    enrol_burst: Annotated[int, Field(ge=1)] = 100
    tracked: Annotated[int, Field(ge=16)] = 100_000


class ServerSettings(Frozen, hide_input_in_errors=True):
    """Settings of a server. They go to its worker processes as JSON, so no secret is among them.

    Attributes:
        bundle: the bundle that is trained.
        public_key: hex of the key that must have signed it; None: it may be signed by anybody or nobody.
        manifest_sha256: of its manifest, as the process that starts workers found it; None: in that process.
        data: folder for what has no other place.
        database: URL; None: an SQLite file in ``data``.
        blobs: folder or ``s3://`` address; None: a folder in ``data``.
        enrolment: ``open``, or ``token``: with a token that an admin issued.
        attestation: ``module:object`` of an `AttestationVerifier`; None: devices need no attestation.
        dashboard, metrics: who may see them. None: the admin where an admin token is set, else everybody if the
            server listens on loopback only, else nobody.
        trust_proxy: addresses of proxies whose ``X-Forwarded-*`` headers are believed; empty: none.
        tls_cert, tls_key: PEM files; None: plain HTTP, behind something that ends TLS.
        shutdown_s: seconds that running requests get to finish.
    """

    name: str = "pfl-mobile"
    bundle: Path
    public_key: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    manifest_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    data: Path = Path("pfl-server-data")
    database: str | None = Field(None, repr=False)
    blobs: str | None = None
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8800
    processes: Annotated[int, Field(ge=1, le=256)] = 1
    enrolment: Literal["open", "token"] = "token"
    attestation: str | None = None
    dashboard: Access | None = None
    metrics: Access | None = None
    trust_proxy: tuple[str, ...] = ()
    tls_cert: Path | None = None
    tls_key: Path | None = None
    shutdown_s: Positive = 30.0
    limits: LimitsConfig = LimitsConfig()

    @field_serializer("bundle", "data", "tls_cert", "tls_key")
    def _path(self, path: Path | None) -> str | None:
        return None if path is None else str(path)

    @property
    def database_url(self) -> str:
        """The URL of the database."""
        return self.database or f"sqlite:///{self.data.absolute() / 'federation.db'}"

    @property
    def blobs_place(self) -> str:
        """Where tensor files lie."""
        return self.blobs or str(self.data.absolute() / "blobs")

    @property
    def on_loopback(self) -> bool:
        """Whether only programs on this machine reach the server."""
        return self.host in ("127.0.0.1", "::1", "localhost") and not self.trust_proxy

    def access(self, to: Literal["dashboard", "metrics"], *, admin: bool) -> Access:
        """Who may see the dashboard or the metrics.

        Args:
            to: which of them.
            admin: whether an admin token is set.
        """
        given: Access | None = getattr(self, to)
        if given is not None:
            return given
        if admin:
            return "admin"
        return "public" if self.on_loopback else "off"
