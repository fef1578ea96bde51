"""The state of the federation in one sentence, and what an overview shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from pfl_server.federation.config import FederationConfig
from pfl_server.reports import queries
from pfl_server.reports.budget import BudgetReport, budget_of
from pfl_server.reports.queries import Funnel, Reason
from pfl_server.reports.wording import count, duration, epsilon, many
from pfl_server.storage.federation_row import ACTIVE, ITSELF
from pfl_server.storage.models import AuditEntry, Federation, Round, Version

#: Rounds that the overview counts problems over.
PROBLEM_ROUNDS = 50


@dataclass(frozen=True)
class Status:
    """The federation now.

    Attributes:
        federation: its row.
        config: its settings.
        round: the newest round; None before the first.
        funnel: of that round.
        newest: the newest version.
        budget: privacy spent and left.
        problems: failed merges, and what was answered, in the last ``PROBLEM_ROUNDS`` rounds, by code.
        outside: answered outside rounds since the first start, by code.
        sentence: all of it in a sentence.
        pause: who paused it, when and why, as in the audit log; None where it is not paused.
    """

    federation: Federation
    config: FederationConfig
    round: Round | None
    funnel: Funnel
    newest: Version
    budget: BudgetReport
    problems: Sequence[Reason]
    outside: Sequence[Reason]
    sentence: str
    pause: AuditEntry | None

    @property
    def why(self) -> str:
        """The reason of a pause that no admin asked for; empty otherwise."""
        return note_of(self.pause) if self.pause is not None and self.pause.actor == ITSELF else ""

    @property
    def over(self) -> bool:
        """Whether no round is open or being merged."""
        return self.round is None or self.round.state not in ACTIVE


def status(session: Session, config: FederationConfig, now: float) -> Status:
    """Read the state of the federation.

    Args:
        session: to read with.
        config: of the federation.
        now: seconds since 1970.
    """
    federation = queries.federation(session)
    newest_round = queries.newest_round(session)
    number = newest_round.number if newest_round else 0
    funnel = queries.funnel(session, number) if newest_round else Funnel()
    newest = queries.newest_version(session)
    budget = budget_of(newest, config)
    return Status(
        federation,
        config,
        newest_round,
        funnel,
        newest,
        budget,
        queries.problems(session, max(0, number - PROBLEM_ROUNDS + 1)),
        queries.refusals_outside(session),
        sentence(federation, newest_round, funnel, budget, now),
        queries.last_pause(session) if federation.state == "paused" else None,
    )


def note_of(entry: AuditEntry) -> str:
    """The words of who acted; empty where there are none."""
    return str(entry.detail.get("note", ""))


def sentence(
    federation: Federation,
    newest: Round | None,
    funnel: Funnel,
    budget: BudgetReport,
    now: float,
) -> str:
    """What is going on, for people."""
    if federation.state == "finished":
        return f"Finished: all rounds are done, model version {federation.version} is served."
    if federation.state == "spent":
        limit = f" of epsilon {epsilon(budget.budget)}" if budget.budget is not None else ""
        return (
            f"Stopped: one more round would exceed the privacy budget{limit}. "
            f"Model version {federation.version} is served."
        )
    now_doing = _round_sentence(newest, funnel, now)
    if federation.state == "paused":
        return f"Paused: devices get no new tasks until an admin resumes. {now_doing}"
    return now_doing


def _round_sentence(newest: Round | None, funnel: Funnel, now: float) -> str:
    if newest is None:
        return "No round has begun yet."
    name = f"Round {newest.number}"
    if newest.state == "open":
        here = f"{count(funnel.uploaded)} of {many(newest.target, 'update')}"
        if newest.selection is not None:  # a draw: it waits for the devices that were drawn
            here = f"{many(funnel.uploaded, 'update')} from {many(newest.target, 'drawn device')}"
        if newest.deadline is None:
            return f"{name} is open: {here}, no deadline."
        if newest.deadline <= now:
            return f"{name} is open: {here}, its deadline has just passed."
        return f"{name} is open: {here}, {duration(newest.deadline - now)} left."
    if newest.state in ("closing", "merging"):
        return f"{name} is being merged: {many(funnel.uploaded, 'update')}."
    ago = f" {duration(now - newest.closed)} ago" if newest.closed is not None else ""
    ended = {
        "merged": f"was merged{ago} from {many(funnel.merged, 'update')}",
        "failed": f"failed{ago}",
        "abandoned": f"was abandoned{ago}",
    }[newest.state]
    return f"{name} {ended}; the next has not begun yet."
