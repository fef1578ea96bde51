"""What a device says about its task beside the update: that there will be none, and how good the models are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Table, case, update
from sqlalchemy.dialects import postgresql, sqlite

from pfl_mobile.local.results import is_recall
from pfl_mobile.plan.schema import LOWER_IS_BETTER
from pfl_server import problems
from pfl_server.places import held_long, note_lapses
from pfl_server.storage.locks import changed
from pfl_server.storage.models import Assignment, EvaluationSum
from pfl_server.uploads.accept import over, own_task
from pfl_server.uploads.partial_file import remove_parts

#: Metrics that are shares of the labels, beside recalls.
_SHARES = frozenset({"accuracy", "precision", "recall", "f1"})
#: Error of rounding that a share may have.
_ROUNDING = 1e-6

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from pfl_mobile.protocol.bodies import Decline, EvaluationReport, MetricSum
    from pfl_server.federation.config import EvaluationConfig
    from pfl_server.identity.devices import DeviceIdentity
    from pfl_server.services import Services


def decline(services: Services, me: DeviceIdentity, task: str, body: Decline) -> int:
    """End a task without an update, so that its round need not wait; returns the round.

    Raises:
        UnknownTask, TaskExpired, AlreadyUploaded: there is no such task, it is over, or has its update.
    """
    with services.database.write() as session:
        mine = own_task(session, me, task)
        done = session.execute(
            update(Assignment)
            .where(Assignment.id == mine.id, Assignment.state == "assigned")
            .values(state="declined", reason=body.reason, finished=services.clock())
        )
        if not changed(done):
            session.refresh(mine)
            if mine.state in ("accepted", "merged"):
                raise problems.AlreadyUploaded("the task has an update already", mend="check in again")
            if mine.state != "declined":
                raise over(mine)
        elif held_long(mine, services.clock()):
            note_lapses(session, services.runtime.config.rounds, [me.id], services.clock())
        number = mine.round
    remove_parts(services.blobs.scratch, task)
    services.runtime.wake.set()
    return number


def evaluate(services: Services, me: DeviceIdentity, task: str, body: EvaluationReport) -> int:
    """Add a device's sums to those of the version it measured, once; returns the round.

    A device counts for at most ``max_weight`` labels: what it says cannot be checked, so none outweighs the rest.
    A report may come before or after the update, also when the task is over: it is about the version that was sent.

    Raises:
        UnknownTask: this device has no such task.
        BadReport: the metrics are not the bundle's, or a mean is outside what the metric can be.
    """
    names = set(body.global_)
    if names != set(body.personalized) or not names or names - services.runtime.metrics:
        raise problems.BadReport(
            "the report has other metrics than the bundle, or not the same for both models",
            mend=f"send some of {', '.join(sorted(services.runtime.metrics))}",
        )
    config = services.runtime.config.evaluation
    shared_means = {name: _mean(name, found, config) for name, found in body.global_.items()}
    own_means = {name: _mean(name, found, config) for name, found in body.personalized.items()}
    with services.database.write() as session:
        mine = own_task(session, me, task)
        first = session.execute(
            update(Assignment)
            .where(Assignment.id == mine.id, Assignment.evaluated.is_(False))
            .values(evaluated=True)
        )
        if changed(first):
            groups = sorted({"", me.group})
            for name in sorted(names):
                change = own_means[name] - shared_means[name]
                gain = -change if name in LOWER_IS_BETTER else change
                _add(
                    services,
                    session,
                    [
                        {
                            "version": mine.base,
                            "kind": kind,
                            "group": group,
                            "metric": name,
                            "total": total,
                            "weight": weight,
                            "largest": weight,
                            "devices": 1,
                            "better": int(kind == "personalized" and gain > 0),
                            "worse": int(kind == "personalized" and gain < 0),
                            "adopted": int(kind == "personalized" and body.adopted),
                        }
                        for kind, (total, weight) in (
                            ("global", _bounded(body.global_[name], config)),
                            ("personalized", _bounded(body.personalized[name], config)),
                        )
                        for group in groups
                    ],
                )
        return mine.round


def _mean(name: str, found: MetricSum, config: EvaluationConfig) -> float:
    """The mean of a metric on one device.

    Raises:
        BadReport: no model can have it.
    """
    mean = found.sum / found.weight
    low, high = -config.max_mean, config.max_mean
    if is_recall(name) or name in _SHARES:
        low, high = 0.0, 1.0 + _ROUNDING
    if not low <= mean <= high:
        raise problems.BadReport(
            f"{name} cannot be {mean:g}", mend="send the sum over labels, and their weight"
        )
    return mean


def _bounded(found: MetricSum, config: EvaluationConfig) -> tuple[float, float]:
    """Sum and weight as they count: scaled down together where they stand for too many labels."""
    weight = min(found.weight, config.max_weight)
    return found.sum * (weight / found.weight), weight


def _add(services: Services, session: Session, rows: list[dict[str, Any]]) -> None:
    """Add to the sums; rows that are not there yet begin with these."""
    table = EvaluationSum.__table__
    assert isinstance(table, Table)
    insert = sqlite.insert if services.database.is_sqlite else postgresql.insert
    keys = ("version", "kind", "group", "metric")
    for row in rows:  # sorted by the caller, so that none waits in a circle
        statement = insert(table).values(**row)
        added: dict[str, Any] = {
            n: table.c[n] + statement.excluded[n] for n in row if n not in (*keys, "largest")
        }
        added["largest"] = case(
            (statement.excluded.largest > table.c.largest, statement.excluded.largest), else_=table.c.largest
        )
        session.execute(statement.on_conflict_do_update(index_elements=list(keys), set_=added))
