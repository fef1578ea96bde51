"""What the endpoints and the coordinator of one process share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastapi import Request
from sqlalchemy import select

from pfl_mobile.errors import ConfigError
from pfl_mobile.files.atomic import private_folder
from pfl_server.clock import SteadyClock
from pfl_server.counting.backoff import FailuresInARow
from pfl_server.counting.metrics import Metrics
from pfl_server.counting.rate_limits import RequestLimits
from pfl_server.counting.refusals import Refusals
from pfl_server.federation.runtime import Runtime
from pfl_server.identity import credentials
from pfl_server.identity.attestation import load_verifier
from pfl_server.storage.blobs import open_blobs
from pfl_server.storage.database import Database
from pfl_server.storage.models import Federation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pfl_mobile.bundle import Bundle
    from pfl_server.federation.config import FederationConfig
    from pfl_server.identity.attestation import AttestationVerifier
    from pfl_server.settings import ServerSettings
    from pfl_server.storage.blobs import Blobs


@dataclass
class Services:
    """Everything that one process works with.

    Attributes:
        secrets: keys of the federation (``credentials.key``), the same in all processes.
        clock: seconds since 1970.
        admin_token: None where admin actions are not set up.
        attestation: None where devices need none.
        trouble: of the coordinator.
    """

    settings: ServerSettings
    database: Database
    blobs: Blobs
    runtime: Runtime
    metrics: Metrics
    limits: RequestLimits
    refusals: Refusals
    trouble: FailuresInARow = field(repr=False)
    secrets: Mapping[str, Any] = field(repr=False)
    clock: Callable[[], float] = field(default_factory=SteadyClock)
    admin_token: str | None = field(default=None, repr=False)
    attestation: AttestationVerifier | None = None

    @classmethod
    def open(
        cls,
        settings: ServerSettings,
        bundle: Bundle,
        config: FederationConfig | None = None,
        *,
        clock: Callable[[], float] | None = None,
        admin_token: str | None = None,
    ) -> Services:
        """Open the places that ``settings`` name; the database is migrated.

        Args:
            settings: of this server.
            bundle: opened and checked.
            config: of the federation; None: the one that is stored.
            clock: seconds since 1970; None: a `SteadyClock`.
            admin_token: None: from the environment (``credentials.admin_token``).

        Raises:
            ConfigError, DatabaseError, BlobError, UnwritableError: something cannot be opened, or belongs to another
                federation.
        """
        clock = SteadyClock() if clock is None else clock
        private_folder(settings.data.absolute(), ours=("federation.db", "blobs", "scratch"))
        token = credentials.admin_token() if admin_token is None else admin_token
        verifier = load_verifier(settings.attestation) if settings.attestation else None
        database = Database(settings.database_url)
        try:
            database.migrate()
            blobs = open_blobs(settings.blobs_place, scratch=settings.data.absolute() / "scratch")
            if config is not None:  # before it decides what the federation computes
                _check_sampling(settings, config, attested=verifier is not None)
            runtime = Runtime.open(database, blobs, bundle, config, clock)
            _check_sampling(settings, runtime.config, attested=verifier is not None)
            with database.read() as session:
                secrets = session.scalars(select(Federation.secrets)).one()
        except BaseException:
            database.close()
            raise
        metrics = Metrics()
        return cls(
            settings=settings,
            database=database,
            blobs=blobs,
            runtime=runtime,
            metrics=metrics,
            limits=RequestLimits(settings.limits),
            refusals=Refusals(database, metrics),
            trouble=FailuresInARow(database, clock),
            secrets=secrets,
            clock=clock,
            admin_token=token,
            attestation=verifier,
        )

    def close(self) -> None:
        """Write what is counted, and close the database."""
        try:
            self.refusals.flush()
        finally:
            self.database.close()


def _check_sampling(settings: ServerSettings, config: FederationConfig, *, attested: bool) -> None:
    """Refuse what would show who was drawn, where the guarantee rests on a secret draw.

    Raises:
        ConfigError: anybody may enrol as many devices as they like, or see how many take part in a round.
    """
    if not config.privacy.rests_on_sampling:
        return
    kind = config.privacy.sampling
    if settings.enrolment == "open" and not attested and not config.open_sampling:
        raise ConfigError(
            f"enrolment is open, and the sampling {kind!r} protects by hiding who is drawn: whoever enrols most "
            "devices knows most of the draw",
            mend="let devices enrol with tokens (leave --open-enrolment out) or with --attestation; or use noise that "
            "needs no sampling (pfl privacy plan --mechanism matrix); --open-sampling accepts it, and the privacy "
            "statement says so",
        )
    for what in ("dashboard", "metrics"):
        if getattr(settings, what) == "public":
            raise ConfigError(
                f"the {what} would show everybody how many devices take part in a round, which the sampling {kind!r} "
                "has to hide",
                mend=f"set --{what} to admin or off",
            )


async def services(request: Request) -> Services:
    """Dependency of the endpoints: the services of this process."""
    found: Services = request.app.state.services
    return found
