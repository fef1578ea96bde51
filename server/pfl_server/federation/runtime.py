"""What a federation is at run time: its model, configuration and strategy, the same in all processes."""

from __future__ import annotations

import json
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from pfl_mobile.errors import ConfigError, OtherSettingsError, StateError
from pfl_mobile.federation.named import effective_strategy, make_strategy
from pfl_mobile.federation.round import sets_read
from pfl_mobile.files.describe import differences
from pfl_mobile.local.state import ModelId
from pfl_mobile.plan.schema import Plan
from pfl_mobile.plan.upload import check_sends
from pfl_mobile.privacy import Ledger, PrivateRounds, SecureNoise, require_secure
from pfl_mobile.privacy.accounting_events import dp_accounting
from pfl_mobile.protocol.bodies import BundleId
from pfl_mobile.protocol.update_file import size_limit
from pfl_mobile.strategies.state import Server, Values
from pfl_server.errors import BlobMissingError
from pfl_server.federation.checks import check_config
from pfl_server.federation.config import FederationConfig
from pfl_server.identity.credentials import new_secrets
from pfl_server.storage.models import EnrolledDevice, Federation, LedgerEntry, Version
from pfl_server.storage.seal import check_seal, check_statement, seal
from pfl_server.storage.sets import get_state, put_set, put_state

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from pfl_mobile.bundle import Bundle
    from pfl_mobile.federation.round import RoundPlan
    from pfl_mobile.privacy import Noise
    from pfl_server.storage.blobs import Blobs
    from pfl_server.storage.database import Database

#: Who is drawn from, in a privacy statement.
_VOUCHED = (
    "Only devices that the operator vouches for, as they enrolled with a token or an attestation, are counted and "
    "drawn. Of those, no one holds most: who does would know most of the draw."
)
_OPEN = (
    "Anybody may enrol, and the operator has accepted it (open_sampling): who enrols most devices knows most of the "
    "draw, and against them only epsilon_known holds."
)
#: Rounds whose plans a process keeps parsed, and states of versions that it keeps in memory.
_ROUNDS, _STATES = 64, 1


class Runtime:
    """A federation at run time. Safe to share between threads; made by `open`.

    Attributes:
        bundle: which model devices must have.
        table: the device tensors.
        metrics: names that evaluation reports may hold.
        initial: shipped values of the tensors that gradients train, float32.
        config: of the federation, as it was when it began.
        said: which strategy runs, in names and numbers.
        definition: what devices and aggregator compute in a round.
        noise: source of the aggregator's noise; one that is not secure is refused wherever it is used.
        width: values of an update.
        max_update_bytes: of an update file.
        wake: set when the coordinator has something to do.
    """

    def __init__(self, blobs: Blobs, bundle: Bundle, config: FederationConfig) -> None:
        """For `open`, which also compares with what is stored.

        Raises:
            ConfigError, UnknownNameError, PrivacyError: the configuration does not fit together, or not to the bundle.
            MissingDependencyError: privacy needs a package that is not installed.
        """
        manifest = bundle.manifest
        self.blobs, self.config = blobs, config
        model = ModelId.of(manifest.name, manifest.version, manifest.tensors, manifest.frozen_sha256)
        self.bundle = BundleId(name=model.name, version=model.version, fingerprint=model.fingerprint)
        self.table: Sequence[Any] = tuple(manifest.tensors)
        self.metrics = frozenset({"loss", *manifest.task.metrics})
        trained = {t.name for t in self.table if t.update == "gradient"}
        self.initial = {name: value for name, value in bundle.values().items() if name in trained}
        self.said = effective_strategy(config.strategy, manifest.strategy)
        self.definition = check_config(config, *make_strategy(self.said, bundle.plan_json()), self.table)
        self.noise: Noise = SecureNoise()
        if config.privacy.guarantees:  # what it needs is missed now, not at the first merge
            dp_accounting()
        if self.definition.central:
            self.noise.normal(1)
        self.wake = threading.Event()
        self._lock = threading.Lock()
        self._rounds: OrderedDict[int, RoundPlan] = OrderedDict()
        self._states: OrderedDict[str, Server] = OrderedDict()
        self._reckoning = threading.Lock()
        self._epsilons: OrderedDict[int, float | None] = OrderedDict()
        plan = self.definition.first_plan(self.beginning(), 0)
        try:
            check_sends(plan, self.table)
        except ConfigError as error:
            raise ConfigError(
                f"the strategy {self.said.name!r} leaves nothing to merge: {error.message}",
                mend="choose one that shares tensors: --strategy NAME (`pfl strategies`)",
            ) from error
        layout = self.definition.round_plan(plan).layout
        self.width, self.max_update_bytes = layout.size, size_limit(layout)

    @classmethod
    def open(
        cls,
        database: Database,
        blobs: Blobs,
        bundle: Bundle,
        config: FederationConfig | None,
        clock: Callable[[], float],
    ) -> Self:
        """The federation of a database; where there is none yet, it begins here with version 0.

        Args:
            database: migrated.
            blobs: store of tensor files.
            bundle: the model.
            config: None takes the stored one.
            clock: seconds since 1970.

        Raises:
            OtherSettingsError: the database holds a federation of another bundle or configuration.
            ConfigError: none is stored and none is given, or it is invalid.
            StateError: the model that is served is missing or damaged.
            LedgerError: the ledger is damaged, or it or the settings were changed in the database.
            BlobError: the store of files failed.
        """
        stored = _stored(database)
        if stored is None:
            if config is None:
                raise ConfigError("there is no federation yet", mend="give its configuration")
            made = cls(blobs, bundle, config)
            try:
                made._begin(database, clock())
                return made
            except IntegrityError:  # another process began it at the same time
                stored = _stored(database)
                if stored is None:
                    raise
        before = FederationConfig.load(json.dumps(stored.config))
        if config is not None and config != before:
            old, new = before.model_dump(mode="json"), config.model_dump(mode="json")
            path, was, now = next(differences(old, new))
            raise OtherSettingsError(
                f"the federation in the database began with other settings: {path} was {was!r} and is {now!r}",
                mend="start without settings to take the stored ones, or take another database",
            )
        runtime = cls(blobs, bundle, before)
        own = runtime.bundle
        if (own.name, own.version, own.fingerprint) != (
            stored.bundle_name,
            stored.bundle_version,
            stored.fingerprint,
        ):
            raise OtherSettingsError(
                f"the federation in the database trains the bundle {stored.bundle_name!r} {stored.bundle_version} "
                f"({stored.fingerprint[:12]}), not {own.name!r} {own.version} ({own.fingerprint[:12]})",
                mend="start it with that bundle, or take another database",
            )
        runtime._check_state(database)
        return runtime

    # -- what a round is

    def plan(self, server: Server, seed: int) -> Plan:
        """What devices do in the round that follows on a state of the server."""
        return self.definition.plan(server.round, seed)

    def common_sets(self, server: Server, plan: Plan) -> dict[str, Values]:
        """The sets that go to every device of a round, as they are sent."""
        return self._sent(self.definition.common_sets(server, sets_read((plan,))))

    def own_sets(self, server: Server, plan: Plan, index: int, group: str) -> dict[str, Values]:
        """The sets that go to one device alone, in place of common ones."""
        return self._sent(self.definition.own_sets(server, sets_read((plan,)), index, group))

    def round_plan(self, number: int, plan: Mapping[str, Any]) -> RoundPlan:
        """The parsed plan of a round; it never changes, so each process parses it once."""
        with self._lock:
            found = self._rounds.get(number)
            if found is None:
                found = self._rounds[number] = self.definition.round_plan(Plan.load(json.dumps(plan)))
                while len(self._rounds) > _ROUNDS:
                    self._rounds.popitem(last=False)
            return found

    # -- states

    def beginning(self) -> Server:
        """The server before the first round."""
        population = self.config.privacy.population or self.config.rounds.cohort
        return self.definition.begin(population, self.initial)

    def population(self, session: Session) -> int:
        """Devices in all: as configured, which is public; else those that take part now."""
        if self.config.privacy.population is not None:
            return self.config.privacy.population
        active = session.scalar(
            select(func.count()).select_from(EnrolledDevice).where(EnrolledDevice.state == "active")
        )
        return max(int(active or 0), 1)

    def state(self, key: str) -> Server:
        """The server's state under a key, to read and not to change; the newest stays in memory."""
        with self._lock:
            found = self._states.get(key)
            if found is None:
                found = self._states[key] = get_state(self.blobs, key, self.table, 0)[0]
                while len(self._states) > _STATES:
                    self._states.popitem(last=False)
            return found

    def published(self, server: Server) -> Values:
        """The shared values of a version, for download."""
        return {name: server.values[name] for name in server.names("shared", "group")}

    # -- privacy

    def private_rounds(self, session: Session, state: dict[str, np.ndarray] | None = None) -> PrivateRounds:
        """Clip norm, noise and ledger as they are after the rounds so far.

        Args:
            session: to read the ledger.
            state: saved with the newest version; None leaves clip norm and noise at their beginning.

        Raises:
            LedgerError, StateError: what is stored is damaged, or of another configuration.
            ConfigError: the noise could be predicted.
        """
        private = self._private()
        ledger = self.ledger(session)
        if state is None:
            private.ledger = ledger
        else:
            check_seal(state, session.scalars(select(Federation.config)).one(), ledger)
            private.restore(state, ledger)
        return private

    def statement(self, ledger: Ledger) -> dict[str, Any]:
        """What a version with this ledger guarantees."""
        if not self.config.privacy.guarantees and not ledger.rounds:
            ledger = Ledger(self.config.privacy)
            ledger.record()
        said = ledger.statement()
        if self.config.privacy.rests_on_sampling and said["assumptions"]:
            said["assumptions"].append(_OPEN if self.config.open_sampling else _VOUCHED)
        return said

    def _private(self) -> PrivateRounds:
        require_secure(self.noise)
        return PrivateRounds(self.config.privacy, self.noise)

    def epsilon_after(self, session: Session, number: int) -> float | None:
        """Epsilon once an update of a round is in a model; None where nothing is guaranteed.

        In buffered training an update may be merged ``max_staleness`` rounds later. The ledger does not change while a
        round is open, so each process reckons once for it.

        Args:
            session: to read the ledger.
            number: of the round.

        Raises:
            LedgerError: the ledger is damaged.
        """
        if not self.config.privacy.guarantees:
            return None
        with self._reckoning:
            if number not in self._epsilons:
                self._epsilons[number] = self._after(self.ledger(session))
                while len(self._epsilons) > _ROUNDS:
                    self._epsilons.popitem(last=False)
            return self._epsilons[number]

    def _after(self, ledger: Ledger) -> float | None:
        rounds, budget = self.config.rounds, self.config.privacy.budget_epsilon
        count = 1 + (rounds.max_staleness if rounds.mode == "buffered" else 0)
        if rounds.total is not None:
            count = min(count, max(rounds.total - ledger.rounds, 1))
        found = ledger.epsilon_after(count)
        if budget is not None:  # no round is opened that would exceed it
            found = min(found, budget)
        return found if math.isfinite(found) else None

    def ledger(self, session: Session) -> Ledger:
        """What the rounds so far have cost, as it is stored.

        Args:
            session: to read with.

        Raises:
            LedgerError: it is damaged.
        """
        events = session.scalars(select(LedgerEntry.event).order_by(LedgerEntry.id))
        entries = [{"event": event, "count": 1} for event in events]
        config = self.config.privacy.model_dump(mode="json")
        return Ledger.from_json(json.dumps({"version": 1, "config": config, "entries": entries}))

    # -- parts

    def _sent(self, sets: Mapping[str, Values]) -> dict[str, Values]:
        return {name: self.definition.on_wire(name, values) for name, values in sets.items()}

    def _check_state(self, database: Database) -> None:
        """Read what the next merge will need, so that damage is found by who starts the server."""
        with database.read() as session:
            version = session.get_one(Version, session.get_one(Federation, 1).version)
            check_statement(version.privacy, self.config.privacy)
            try:
                server, noise = get_state(self.blobs, version.state_blob, self.table, 0)
                self.private_rounds(session, noise)
            except (BlobMissingError, StateError) as error:
                raise StateError(
                    f"the state of model version {version.number} in {self.blobs.place} cannot be used: "
                    f"{error.message}",
                    mend=f"check that --data or --blobs is the place of this federation, restore {version.state_blob} "
                    "from a backup, or begin another federation with another --data folder",
                ) from error
        self._states[version.state_blob] = server

    def _begin(self, database: Database, now: float) -> None:
        server = self.beginning()
        private = self._private()
        config = self.config.model_dump(mode="json")
        key = put_state(self.blobs, 0, server, private.state() | seal(config, private.ledger))
        values = put_set(self.blobs, self.published(server))
        with database.write() as session:
            session.add(
                Federation(
                    id=1,
                    bundle_name=self.bundle.name,
                    bundle_version=self.bundle.version,
                    fingerprint=self.bundle.fingerprint,
                    config=config,
                    state="running",
                    version=0,
                    next_round=0,
                    next_index=0,
                    clip_norm=private.clip_norm,
                    secrets=new_secrets(),
                    lease_owner=None,
                    lease_until=0.0,
                    created=now,
                )
            )
            session.add(
                Version(
                    number=0,
                    round=None,
                    parent=None,
                    state_blob=key,
                    values_sha256=values["sha256"],
                    values_bytes=values["bytes"],
                    privacy=self.statement(private.ledger),
                    created=now,
                )
            )


def _stored(database: Database) -> Federation | None:
    with database.read() as session:
        return session.get(Federation, 1)
