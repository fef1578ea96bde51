"""What each page shows, made of query results: charts, bars and rows, ready for the templates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from markupsafe import Markup
from sqlalchemy.orm import Session

from pfl_mobile.local.results import is_recall
from pfl_server.dashboard.charts import BarPart, Level, Line, Mark, Point, bar, legend, line_chart
from pfl_server.federation.config import FederationConfig
from pfl_server.reports import quality, queries
from pfl_server.reports.budget import BudgetReport
from pfl_server.reports.quality import Figure, QualityHistory
from pfl_server.reports.queries import DeviceCounts, Funnel, Reason
from pfl_server.reports.wording import (
    DEVICE_STATES,
    MERGE,
    RAW,
    count,
    epsilon,
    figure,
    many,
    metric_name,
    moment,
    reason,
    share,
)
from pfl_server.storage.models import LedgerEntry, Version

#: Ledger entries that the chart of the privacy loss goes back.
LEDGER_SHOWN = 200


@dataclass(frozen=True)
class Row:
    """A named number with a bar and an explanation."""

    name: str
    value: str
    note: str
    drawn: Markup


@dataclass(frozen=True)
class Chart:
    """A chart with its legend, and the same as rows of a table."""

    drawn: Markup
    legend: Markup
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


def funnel_rows(funnel: Funnel, *, over: bool) -> list[Row]:
    """The steps that a round's devices take, each as a part of those invited.

    Args:
        funnel: of the round.
        over: whether the round has ended.
    """
    merged = "are part of the new model version" if over else "comes when the round closes"
    steps = (
        ("Invited", funnel.invited, "devices that got a task", "soft"),
        ("Downloaded", funnel.downloaded, "fetched the model", "soft"),
        ("Uploaded", funnel.uploaded, "trained and sent an update that was accepted", "main"),
        ("Merged", funnel.merged, merged, "good"),
    )
    return [
        Row(
            name,
            count(number),
            note
            if name == "Invited" or (name == "Merged" and not over)
            else _of(number, funnel.invited) + note,
            bar(
                [BarPart(number, kind, f"{name}: {number}")],
                funnel.invited,
                f"{name}: {number} of {funnel.invited}",
            ),
        )
        for name, number, note, kind in steps
    ]


def lost_rows(funnel: Funnel) -> list[tuple[str, str, str]]:
    """Devices that gave no update, by why: number, what became of them, why."""
    rows = [("Refused", r) for r in funnel.refused] + [("Declined", r) for r in funnel.declined]
    found = [(count(r.count), what, reason(r.code)) for what, r in rows]
    for state, what, why in (
        ("assigned", "Working", "They have not answered yet"),
        ("expired", "Vanished", "They did not answer in time; this costs nothing"),
        (
            "discarded",
            "Discarded",
            "Their updates were accepted, but their round gave no model or they were revoked",
        ),
    ):
        if funnel.states[state]:
            found.append((count(funnel.states[state]), what, why))
    return found


def merge_rows(summary: Mapping[str, Any], *, raw: bool) -> list[tuple[str, str, str]]:
    """Numbers of a merge: name, explanation, value.

    Args:
        summary: of the round.
        raw: whether the viewer may see those of updates without noise.
    """
    found = []
    for name, (label, meaning) in MERGE.items():
        value = summary.get(name) if raw or name not in RAW else None
        if value is not None:
            text = f"{100 * value:.0f}\N{NO-BREAK SPACE}%" if name == "clipped" else f"{value:.4g}"
            found.append((label, meaning, text))
    return found


def problem_rows(found: Sequence[Reason]) -> list[Row]:
    """Problems by code, with a bar relative to the most frequent one."""
    most = max((r.count for r in found), default=0)
    return [
        Row(
            r.code or "",
            count(r.count),
            reason(r.code),
            bar([BarPart(r.count, "bad", str(r.count))], most, str(r.count)),
        )
        for r in found
    ]


def device_rows(devices: DeviceCounts) -> list[Row]:
    """Devices by state."""
    return [
        Row(
            state.capitalize(),
            count(devices.states[state]),
            meaning,
            bar(
                [
                    BarPart(
                        devices.states[state], {"active": "good", "revoked": "bad"}.get(state, "soft"), state
                    )
                ],
                devices.total,
                f"{state}: {devices.states[state]} of {devices.total}",
            ),
        )
        for state, meaning in DEVICE_STATES.items()
    ]


def budget_bar(budget: BudgetReport) -> Markup:
    """Privacy spent as a part of the budget; empty without one."""
    if budget.budget is None or budget.spent is None or budget.left is None:
        return Markup("")
    part = budget.spent / budget.budget
    kind = "main" if part < 0.8 else "warn" if part < 0.95 else "bad"
    spent, whole = epsilon(budget.spent), epsilon(budget.budget)
    return bar(
        [BarPart(budget.spent, kind, f"Spent: epsilon {spent}")], budget.budget, f"{spent} of {whole} spent"
    )


def epsilon_chart(entries: Sequence[LedgerEntry], budget: BudgetReport) -> Chart:
    """Privacy loss after each round, below the budget. ``entries`` newest first."""
    points = [
        Point(e.round, e.epsilon, f"After round {e.round}: epsilon {epsilon(e.epsilon)}")
        for e in reversed(entries)
    ]
    line = Line("epsilon spent", "personalized", points)
    levels = (
        [] if budget.budget is None else [Level(budget.budget, f"Budget: epsilon {epsilon(budget.budget)}")]
    )
    drawn = line_chart(
        [line],
        title="Privacy loss epsilon after each round",
        x_label="round",
        y_label="epsilon",
        levels=levels,
        from_zero=True,
    )
    return Chart(drawn, legend([line]) if drawn else Markup(""))


def quality_chart(history: QualityHistory, rolled_back: Sequence[Version]) -> Chart:
    """The metric over versions: global, personalized, worst group."""
    say = partial(figure, history.metric)
    picks: list[tuple[str, str, str, Callable[[quality.Quality], Figure | None]]] = [
        ("global model", "global", "global model", lambda q: q.shared),
        ("personalized on the device", "personalized", "personalized", lambda q: q.personalized),
    ]
    if any(q.worst for q in history.versions):
        picks.append(
            (
                "worst group shown, personalized",
                "worst",
                "worst group",
                lambda q: q.worst.personalized if q.worst else None,
            )
        )
    lines = [
        Line(name, kind, [_point(q, pick(q), short, say) for q in history.versions])
        for name, kind, short, pick in picks
    ]
    drawn = line_chart(
        lines,
        title=f"Quality over model versions: {metric_name(history.metric)}",
        x_label="model version",
        y_label=f"{metric_name(history.metric)}{' (%)' if is_recall(history.metric) else ''}",
        y_text=lambda value: say(value).replace("\N{NO-BREAK SPACE}%", ""),
        marks=[Mark(v.number, f"Version {v.number}: {v.note}, {moment(v.created)}") for v in rolled_back],
    )
    rows = [
        [str(q.version), *(say(f.value) if (f := pick(q)) else "–" for *_, pick in picks), count(q.devices)]
        for q in reversed(history.versions)
    ]
    return Chart(
        drawn,
        legend(lines) if drawn else Markup(""),
        ["version", *(name for name, *_ in picks), "devices"],
        rows,
    )


def group_rows(history: QualityHistory) -> list[Row]:
    """Groups of the newest version with figures, worst first."""
    latest = history.latest
    if latest is None:
        return []
    values = [g.personalized.value for g in latest.groups]
    most = max((abs(v) for v in values), default=0.0)
    say = partial(figure, history.metric)
    rows = []
    for place, group in enumerate(latest.groups):
        own = group.personalized
        gain = f", global model {say(group.shared.value)}" if group.shared else ""
        rows.append(
            Row(
                group.name,
                say(own.value),
                f"{many(own.devices, 'device')}{gain}",
                bar(
                    [
                        BarPart(
                            abs(own.value),
                            "worst" if place == 0 else "main",
                            f"{group.name}: {say(own.value)}",
                        )
                    ],
                    most,
                    f"{group.name}: {say(own.value)}",
                ),
            )
        )
    return rows


@dataclass(frozen=True)
class Overview:
    """What the overview shows of quality and of the last merged round."""

    history: QualityHistory | None
    quality: Chart | None
    groups: Sequence[Row]
    gain: str | None
    last: queries.RoundRow | None
    rolled_back: bool = False


def overview(session: Session, config: FederationConfig, metric: str | None, newest: int | None) -> Overview:
    """Read quality, and the last merged round where it is not the newest one.

    Args:
        session: to read with.
        config: of the federation.
        metric: to show; None for the default.
        newest: number of the newest round.
    """
    behind = config.rounds.max_staleness if config.rounds.mode == "buffered" else 0
    history = quality.history(session, metric, config.groups, config.evaluation.min_devices, behind=behind)
    merged = queries.last_merged(session)
    last = None
    if merged is not None and merged.number != newest:
        last = queries.RoundRow(merged, queries.funnel(session, merged.number))
    if history is None or not history.versions:
        return Overview(history, None, [], None, last)
    back = queries.roll_backs(session, history.versions[0].version)
    return Overview(
        history, quality_chart(history, back), group_rows(history), _gain(history), last, bool(back)
    )


def _gain(history: QualityHistory) -> str | None:
    """What personalization changes, in words; None where it is not known."""
    latest = history.latest
    if latest is None or latest.shared is None or latest.personalized is None:
        return None
    change = latest.personalized.value - latest.shared.value
    better = -change if history.lower_is_better else change
    amount = f"{100 * abs(change):.1f} points" if is_recall(history.metric) else f"{abs(change):.3g}"
    return f"{amount} {'better' if better >= 0 else 'worse'} than the global model"


def _point(found: quality.Quality, value: Figure | None, name: str, say: Callable[[float], str]) -> Point:
    if value is None:
        return Point(found.version, None)
    title = f"Version {found.version}, {name}: {say(value.value)} over {many(value.devices, 'device')}"
    if found.worst and name == "worst group":
        title += f" ({found.worst.name})"
    return Point(found.version, value.value, title)


def _of(number: int, whole: int) -> str:
    part = share(number, whole)
    return f"{part}, " if part else ""
