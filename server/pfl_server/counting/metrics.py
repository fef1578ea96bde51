"""Prometheus metrics: what each process counts, and what the database knows.

With several processes, ``PROMETHEUS_MULTIPROC_DIR`` names a folder that they share (``pfl serve --processes`` sets
it), and every process answers for all of them.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from typing_extensions import override

from pfl_server.storage.models import Assignment, EnrolledDevice, Federation, LedgerEntry, Round

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client import Metric
    from sqlalchemy.orm import Session

    from pfl_server.storage.database import Database

#: Media type of the answer.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_STATES = ("running", "paused", "finished", "spent")


class Metrics:
    """The metrics that this process counts.

    Attributes:
        requests: answers by method, route and status.
        seconds: from the head of a request to the end of its answer, by route.
        body_bytes: bytes of bodies by direction (``in``, ``out``) and route.
        refusals: problems by code.
        merges: merges by outcome (``merged``, ``failed``, ``abandoned``).
        merge_seconds: seconds of a merge.
        updates: updates by outcome (``accepted``, ``merged``, ``discarded``).
    """

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a time for each series, which nobody asks for
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "pfl_http_requests", "Answers.", ["method", "route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "pfl_http_request_seconds", "Duration.", ["route"], buckets=_SECONDS, registry=registry
        )
        self.body_bytes = Counter(
            "pfl_http_body_bytes", "Bytes of bodies.", ["route", "direction"], registry=registry
        )
        self.refusals = Counter("pfl_refusals", "Problems that were answered.", ["code"], registry=registry)
        self.merges = Counter("pfl_merges", "Merges.", ["outcome"], registry=registry)
        self.merge_seconds = Histogram(
            "pfl_merge_seconds", "Duration of a merge.", buckets=_SECONDS, registry=registry
        )
        self.updates = Counter("pfl_updates", "Updates of devices.", ["outcome"], registry=registry)

    def render(self, database: Database) -> bytes:
        """All metrics in Prometheus' text format.

        Raises:
            DatabaseError: the database cannot be read.
        """
        counted = self.registry
        if FOLDER in os.environ:
            counted = CollectorRegistry()
            MultiProcessCollector(counted)  # type: ignore[no-untyped-call]
        state = CollectorRegistry()
        state.register(_OfDatabase(database))
        return generate_latest(counted) + generate_latest(state)


class _OfDatabase(Collector):
    """Gauges of the present state, read when they are asked for; the same from every process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._families: dict[str, GaugeMetricFamily] = {}

    @override
    def collect(self) -> Iterable[Metric]:
        with self._database.read() as session:
            federation = session.get(Federation, 1)
            if federation is not None:
                self._add_federation(federation)
                self._add_counts(session)
        return self._families.values()

    def _add_federation(self, federation: Federation) -> None:
        for name in _STATES:
            self._add(
                "pfl_federation_state", "1 for the present state.", name == federation.state, state=name
            )
        self._add("pfl_version", "Model version that is served.", federation.version)
        if federation.clip_norm is not None:
            self._add("pfl_clip_norm", "L2 bound on updates.", federation.clip_norm)

    def _add_counts(self, session: Session) -> None:
        for name, count in session.execute(
            select(EnrolledDevice.state, func.count()).group_by(EnrolledDevice.state)
        ):
            self._add("pfl_devices", "Devices by state.", count, state=name)
        for name, count in session.execute(select(Round.state, func.count()).group_by(Round.state)):
            self._add("pfl_rounds", "Rounds by state.", count, state=name)
        newest = session.scalar(select(func.max(Round.number)))
        if newest is not None:
            self._add("pfl_round", "Number of the newest round.", newest)
            of_newest = select(Assignment.state, func.count()).where(Assignment.round == newest)
            for name, count in session.execute(of_newest.group_by(Assignment.state)):
                self._add("pfl_round_assignments", "Devices of the newest round by state.", count, state=name)
        spent = session.scalar(select(LedgerEntry.epsilon).order_by(LedgerEntry.round.desc()).limit(1))
        if spent is not None:
            self._add("pfl_epsilon", "Privacy spent so far.", spent)

    def _add(self, name: str, text: str, value: float, **labels: str) -> None:
        family = self._families.setdefault(name, GaugeMetricFamily(name, text, labels=sorted(labels)))
        family.add_metric([labels[k] for k in sorted(labels)], float(value))
