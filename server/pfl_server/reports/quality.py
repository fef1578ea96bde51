"""Quality of the global and the personalized model, from sums of devices' reports.

What is shown must not give away one device's figures:

- sums over fewer than ``min_devices`` devices are hidden, and those where one device has more than half of the labels:
  they would be that device's figure, give or take a little;
- where hidden groups together have fewer than ``min_devices`` devices, they would follow from the total less the
  groups shown, so the smallest shown group is hidden as well (complementary suppression, as statistical offices do);
- a version that devices are still at work on is hidden, as two looks at a running sum give the reports in between.
  A report that comes after that still moves the sum: whoever looks before and after it learns that report, which is
  why the privacy statement does not cover reports.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from pfl_mobile.local.results import is_recall
from pfl_mobile.plan.schema import LOWER_IS_BETTER
from pfl_server.storage.federation_row import ACTIVE
from pfl_server.storage.models import Assignment, EvaluationSum, Round

#: Versions that a chart goes back.
VERSIONS_SHOWN = 100
#: What is measured: the shared values as sent, and what serves after training.
KINDS = ("global", "personalized")
#: Metrics people understand first.
_PREFERRED = ("top3", "top1", "accuracy", "top5", "auc", "f1", "rmse", "mae", "mse", "loss")


@dataclass(frozen=True)
class Figure:
    """A mean over devices' held-out labels.

    Attributes:
        value: mean of the metric, weighted by labels.
        devices: that reported.
        better, worse, adopted: devices by what personalization did; zero for the global model.
    """

    value: float
    devices: int
    better: int = 0
    worse: int = 0
    adopted: int = 0


@dataclass(frozen=True)
class Group:
    """Figures of one group of devices."""

    name: str
    shared: Figure | None
    personalized: Figure


@dataclass(frozen=True)
class Quality:
    """What is known of one version.

    Attributes:
        version: whose shared values were measured.
        shared: with the shared values as sent; None where hidden or unknown.
        personalized: after the device trained.
        groups: those shown, worst personalized figure first.
        hidden: groups not shown, as too few devices reported.
        devices: that reported, also where too few.
    """

    version: int
    shared: Figure | None
    personalized: Figure | None
    groups: Sequence[Group] = ()
    hidden: int = 0
    devices: int = 0

    @property
    def worst(self) -> Group | None:
        """The group that fares worst with its own models; None without groups."""
        return self.groups[0] if self.groups else None


@dataclass(frozen=True)
class QualityHistory:
    """Quality over versions.

    Attributes:
        metric: which metric.
        metrics: all that were reported.
        lower_is_better: of the metric.
        versions: by number, oldest first, those with figures or too few devices.
        counting: the version that devices of the open round report on now; hidden until that round is over.
    """

    metric: str
    metrics: Sequence[str]
    lower_is_better: bool
    versions: Sequence[Quality]
    counting: int | None

    @property
    def latest(self) -> Quality | None:
        """The newest version with figures to show."""
        return next((q for q in reversed(self.versions) if q.personalized), None)


def history(
    session: Session,
    metric: str | None,
    groups: Sequence[str],
    min_devices: int,
    limit: int = VERSIONS_SHOWN,
    *,
    behind: int = 0,
) -> QualityHistory | None:
    """Quality of the newest versions.

    Args:
        session: to read with.
        metric: which; None, or one that was not reported, for the one that people understand first.
        groups: names of the federation's groups.
        min_devices: figures over fewer devices are hidden.
        limit: versions to go back from the newest that was measured.
        behind: rounds after its own that a task may still be worked on (buffered training).

    Returns:
        None when nothing was reported yet.
    """
    newest = session.scalar(select(func.max(EvaluationSum.version)))
    if newest is None:
        return None
    metrics = _metrics(session, newest)
    chosen = metric if metric in metrics else metrics[0]
    counting = _counting(session, behind)
    lower = chosen in LOWER_IS_BETTER
    rows = session.scalars(
        select(EvaluationSum).where(
            EvaluationSum.version.in_(range(max(0, newest - limit + 1), newest + 1)),
            EvaluationSum.kind.in_(KINDS),
            EvaluationSum.group.in_(("", *groups)),
            EvaluationSum.metric == chosen,
        )
    )
    by_version: dict[int, list[EvaluationSum]] = defaultdict(list)
    for row in rows:
        if counting is None or row.version < counting:
            by_version[row.version].append(row)
    found = [_quality(n, by_version[n], min_devices, lower) for n in sorted(by_version)]
    return QualityHistory(chosen, metrics, lower, found, counting)


def _counting(session: Session, behind: int) -> int | None:
    """The oldest version that devices still report on; None between rounds."""
    base, number = session.execute(
        select(func.min(Round.base), func.max(Round.number)).where(Round.state.in_(ACTIVE))
    ).one()
    if base is None or not behind:
        return base
    working = select(func.min(Assignment.base)).where(
        Assignment.round >= number - behind, Assignment.state == "assigned"
    )
    oldest = session.scalar(working)
    return base if oldest is None else min(base, oldest)


def _metrics(session: Session, newest: int) -> list[str]:
    names = set(
        session.scalars(
            select(EvaluationSum.metric)
            .where(EvaluationSum.version == newest, EvaluationSum.group == "")
            .distinct()
        )
    )
    order = {name: place for place, name in enumerate(_PREFERRED)}
    return sorted(names, key=lambda m: (order.get(m, len(order) - (not is_recall(m))), m))


def _decided(weight: float, largest: float, min_devices: int) -> bool:
    """Whether one device has more than half of the labels, where figures of single devices are not to be shown."""
    return min_devices > 1 and 2 * largest > weight


def _figure(row: EvaluationSum | None) -> Figure | None:
    if row is None or row.weight <= 0:
        return None
    return Figure(row.total / row.weight, row.devices, row.better, row.worse, row.adopted)


def _quality(version: int, rows: Iterable[EvaluationSum], min_devices: int, lower: bool) -> Quality:
    cells = {(row.group, row.kind): row for row in rows}
    counts = {group: row.devices for (group, kind), row in cells.items() if kind == "personalized"}
    reported = counts.pop("", 0)
    decided = {group for (group, _), row in cells.items() if _decided(row.weight, row.largest, min_devices)}
    if reported < min_devices or "" in decided:
        return Quality(version, None, None, hidden=len(counts), devices=reported)
    told = {group: n for group, n in counts.items() if group not in decided}
    shown = shown_groups(told, reported, min_devices)
    while shown and _rest_is_decided(cells, shown, min_devices):
        shown.pop()
    groups = []
    for name in shown:
        own = _figure(cells[name, "personalized"])
        if own is not None:
            groups.append(Group(name, _figure(cells.get((name, "global"))), own))
    groups.sort(key=lambda g: (-g.personalized.value if lower else g.personalized.value, g.name))
    return Quality(
        version,
        _figure(cells.get(("", "global"))),
        _figure(cells[("", "personalized")]),
        groups,
        len(counts) - len(groups),
        reported,
    )


def _rest_is_decided(
    cells: Mapping[tuple[str, str], EvaluationSum], shown: Sequence[str], min_devices: int
) -> bool:
    """Whether what is left of the total without the groups shown may be one device's for more than half."""
    for kind in KINDS:
        whole = cells.get(("", kind))
        if whole is None:
            continue
        rest = whole.weight - sum(cells[name, kind].weight for name in shown if (name, kind) in cells)
        # of devices without a group it is not known how much the largest has
        if rest > 0.5 and _decided(rest, min(whole.largest, rest), min_devices):
            return True
    return False


def shown_groups(devices: Mapping[str, int], total: int, min_devices: int) -> list[str]:
    """Names of the groups whose figures may be shown beside the total.

    Args:
        devices: that reported, by group.
        total: devices that reported in all, also those without a group.
        min_devices: smallest number of devices that any figure, also one found by subtracting, may rest on.
    """
    shown = sorted((name for name, n in devices.items() if n >= min_devices), key=lambda n: (-devices[n], n))
    while shown and 0 < total - sum(devices[name] for name in shown) < min_devices:
        shown.pop()
    return shown
