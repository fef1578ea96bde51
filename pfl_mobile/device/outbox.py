"""What a device sends when training has ended: updates and reports, which wait in its folder until they are sent."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from pfl_mobile.device import events
from pfl_mobile.device.store import Pending
from pfl_mobile.device.transfer import upload
from pfl_mobile.errors import ServerProblem, StateError, StorageFullError
from pfl_mobile.protocol.bodies import EvaluationReport, TaskPrivacy

if TYPE_CHECKING:
    from pfl_mobile.device.client import Client
    from pfl_mobile.device.pipeline import Pipeline, TaskResult
    from pfl_mobile.device.store import DeviceFolder
    from pfl_mobile.protocol.bodies import RoundTask

Ended = Literal["rounds", "done", "once", "until", "privacy", "cancelled"]

#: Problems after which a task is over for this device, which goes on with the next.
OVER = frozenset(
    {
        "unknown-task",
        "task-expired",
        "round-closed",
        "too-stale",
        "not-found",
        "idempotency-key-reused",
        "already-uploaded",
        "update-of-another-task",
    }
)
#: Problems with what this device made: a bug or a model that diverged. The update is dropped.
REFUSED = frozenset(
    {
        "malformed-update",
        "wrong-tensors",
        "update-not-finite",
        "update-too-large",
        "bad-report",
        "bad-request",
        "body-too-large",
        "invalid-request",
    }
)


@dataclass
class Summary:
    """What a run of a device did.

    Attributes:
        ended: ``rounds`` (as many as asked for), ``done`` (the federation trains no more), ``once``, ``until``,
            ``privacy`` (the federation protects updates less than the policy asks for), ``cancelled``.
        rounds: updates that the aggregator accepted.
        declined: tasks without an update, by reason.
        dropped: updates that could not be sent or were refused.
        bytes_up, bytes_down: of bodies, failed tries included.
    """

    ended: Ended = "cancelled"
    rounds: int = 0
    declined: dict[str, int] = field(default_factory=dict)
    dropped: int = 0
    bytes_up: int = 0
    bytes_down: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class Outbox:
    """Sends what is finished, and remembers it until it is accepted.

    Args:
        folder: of the device.
        client: of the aggregator.
        pipeline: that made the updates.
        summary: counts what is sent.
        tell: told what happens.
        clock: seconds.
    """

    def __init__(
        self,
        folder: DeviceFolder,
        client: Client,
        pipeline: Pipeline,
        summary: Summary,
        tell: Callable[[events.Event], None],
        clock: Callable[[], float],
    ) -> None:
        """Nothing is sent yet."""
        self.folder, self.client, self.pipeline = folder, client, pipeline
        self.summary, self.tell, self.clock = summary, tell, clock
        self._fresh: set[str] = set()  # tasks of which nothing was sent yet

    def go_on(self) -> None:
        """Finish what a killed process left."""
        found, damaged = self.folder.pending()
        for task in damaged:
            self.drop(task, "update", "its file in the queue is damaged")
        for pending in found:
            self._adopt(pending)

    def holds(self, task: str) -> bool:
        """Whether the update of this task waits."""
        return any(pending.task == task for pending in self.folder.pending()[0])

    def put(self, task: RoundTask, deadline: float, done: TaskResult) -> None:
        """Make the update safe first; then let the new personal state serve.

        An update with noise of the device is counted before anything else: from here on it may be sent at any time.
        """
        if task.privacy.clip_norm is not None and task.privacy.local_noise_multiplier > 0:
            self.folder.sent.add(task.privacy.local_noise_multiplier)
        membership = self.folder.membership
        pending = Pending(
            task=task.id,
            round=task.round,
            url=task.update_url,
            key=secrets.token_hex(16),
            deadline=deadline,
            sha256=hashlib.sha256(done.update).hexdigest(),
            bytes=len(done.update),
            privacy=task.privacy.model_dump(mode="json"),
            reports=task.reports,
            evaluation=None
            if done.evaluation is None
            else done.evaluation.model_dump(mode="json", by_alias=True),
            adopts=done.adopts,
            copies=done.copies,
            instead_of=self.folder.personal.current,
            server=membership.server if membership else None,
            device=membership.device if membership else None,
        )
        self.folder.put(pending, done.update)
        self._fresh.add(task.id)
        # The update is safe. With a full disk the state serves later: it is tried again before the update is sent.
        with contextlib.suppress(StorageFullError):
            self._adopt(pending)
        report, norm = done.report, done.protected.norm
        self.tell(
            events.Finished(
                task.round,
                report.status,
                report.steps,
                report.seconds,
                report.before,
                report.after,
                norm,
                done.protected.clipped,
            )
        )

    def flush(self) -> None:
        """Send everything that waits, if the policy still allows it: it may be stricter than when it was made.

        What was made for another membership is dropped.

        Raises:
            UnreachableError: it goes on waiting.
        """
        for waiting in self.folder.pending()[0]:
            pending = self._adopt(waiting)
            what = "evaluation" if pending.uploaded else "update"
            if self._is_of_another(pending):
                self.drop(pending.task, what, "it was made for another membership", pending)
            elif self.clock() >= pending.deadline:
                self.drop(pending.task, what, "its task has expired", pending)
            elif self._upload(pending):
                self._report(pending)

    def _is_of_another(self, pending: Pending) -> bool:
        now = self.folder.membership
        if pending.device is None:
            return False
        return now is None or (pending.server, pending.device) != (now.server, now.device)

    def _upload(self, pending: Pending) -> bool:
        """Send an update; whether it is accepted."""
        if pending.uploaded:
            return True
        privacy = TaskPrivacy.model_validate(pending.privacy)
        why = self.pipeline.policy.refusal(privacy, pending.reports, self.folder.sent, counted=True)
        if why is not None:
            self.drop(pending.task, "update", why, pending)
            return False
        resume = pending.task not in self._fresh
        self._fresh.discard(pending.task)
        file = self.folder.update_path(pending.task)
        try:
            state = upload(self.client, pending.url, file, pending.key, resume=resume)
        except ServerProblem as problem:
            if problem.code not in OVER | REFUSED:
                raise
            self.drop(pending.task, "update", f"{problem.code}: {problem.message}", pending)
            return False
        self.summary.rounds += 1
        self.folder.change(pending, uploaded=True)
        self.tell(events.Uploaded(pending.round, pending.bytes, state.duplicate))
        return True

    def _report(self, pending: Pending) -> None:
        allowed = self.pipeline.policy.may_report(TaskPrivacy.model_validate(pending.privacy))
        if pending.evaluation is not None and allowed:
            report = EvaluationReport.model_validate(pending.evaluation)
            try:
                self.client.report(pending.task, report)
            except ServerProblem as problem:
                if problem.code not in OVER | REFUSED:
                    raise
                self.drop(pending.task, "evaluation", f"{problem.code}: {problem.message}")
                return
            self.tell(_reported(pending.round, report))
        self.folder.remove(pending.task)

    def drop(self, task: str, what: str, why: str, pending: Pending | None = None) -> None:
        """Forget a task, and say so.

        Args:
            task: its id.
            what: ``update``, ``evaluation`` or ``task``.
            why: in words.
            pending: what was in the queue.
        """
        if pending is not None and not pending.uploaded:
            self.pipeline.take_back(pending.copies, pending.instead_of)
        self.folder.remove(task)
        self.summary.dropped += 1
        self.tell(events.Dropped(task, what, why))

    def _adopt(self, pending: Pending) -> Pending:
        store = self.folder.personal
        if pending.adopts is None:
            return pending
        # else somebody reverted it meanwhile, or erased it
        if store.current == pending.instead_of and self._is_there(pending.adopts):
            store.adopt(pending.adopts)
        self.folder.change(pending, adopts=None)
        return replace(pending, adopts=None)

    def _is_there(self, version: int) -> bool:
        try:
            self.folder.personal.read(version)
        except StateError:
            return False
        return True


def _reported(number: int, report: EvaluationReport) -> events.Reported:
    sums = report.global_, report.personalized
    means = [{name: m.sum / m.weight for name, m in one.items()} for one in sums]
    weight = max(m.weight for m in report.personalized.values())
    return events.Reported(number, means[0], means[1], weight)
