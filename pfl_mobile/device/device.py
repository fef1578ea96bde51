"""A device that takes part in a federation: enrol, send what waits, check in, train, repeat.

    with DeviceFolder("ann", model.id) as folder, Client("https://pfl.example.org") as client:
        Device(model, texts, folder, client).run(rounds=3)

A process may be killed and the network may be lost at any moment: a task that was begun is given out again and
trained again from the same state, an update that is finished waits in the folder, and sending it twice counts once.
"""

from __future__ import annotations

import importlib.metadata
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pfl_mobile.device import events
from pfl_mobile.device.outbox import OVER, Ended, Outbox, Summary
from pfl_mobile.device.pipeline import DeclineTask, Pipeline
from pfl_mobile.device.transfer import download
from pfl_mobile.errors import (
    DeviceError,
    DeviceFolderError,
    EngineError,
    NonFiniteError,
    NotTheAggregatorError,
    PflError,
    ProtocolError,
    ServerProblem,
    StorageFullError,
    TensorFileError,
    UnreachableError,
)
from pfl_mobile.protocol.bodies import CheckIn, Decline, Enrolment, Facts

if TYPE_CHECKING:
    import numpy as np

    from pfl_mobile.device.client import Client
    from pfl_mobile.device.model import Model
    from pfl_mobile.device.privacy import PrivacyPolicy
    from pfl_mobile.device.store import DeviceFolder, Membership
    from pfl_mobile.local.report import Progress
    from pfl_mobile.local.trainer import Examples
    from pfl_mobile.privacy import Noise
    from pfl_mobile.protocol.bodies import Attestation, Download, FederationInfo, RoundTask

#: Problems that say that the aggregator does not know the credential.
_GONE = ("unauthorized", "device-revoked")

#: Makes a verdict of the platform, of one of these kinds, bound to the challenge.
Attest = Callable[[str, tuple[str, ...]], "Attestation"]


class Device:
    """One device of a federation.

    Args:
        model: checked programs.
        examples: of the user, oldest first.
        folder: what the device keeps.
        client: the aggregator.
        policy: what must protect updates; by default something must.
        test: share of the examples, the newest, for evaluation reports; never trained on.
        facts: told at check-in.
        group: the device's group, where the federation has groups.
        token: for enrolment, where one is needed.
        attest: makes the platform's verdict, where one is needed.
        on_event: told what happens.
        clock: seconds, for deadlines.
        patience_s: how long the aggregator may be out of reach; None: for ever.
        noise: of the device; None for the secure source.
    """

    def __init__(
        self,
        model: Model,
        examples: Examples,
        folder: DeviceFolder,
        client: Client,
        *,
        policy: PrivacyPolicy | None = None,
        test: float = 0.2,
        facts: Facts | None = None,
        group: str = "",
        token: str | None = None,
        attest: Attest | None = None,
        on_event: events.OnEvent = lambda _event: None,
        clock: Callable[[], float] = time.time,
        patience_s: float | None = None,
        noise: Noise | None = None,
    ) -> None:
        """Nothing is sent yet."""
        self.model, self.folder, self.client = model, folder, client
        self.pipeline = Pipeline(
            model, examples, folder.personal, folder.sent, policy=policy, test=test, noise=noise
        )
        self.facts = facts or Facts(engine=model.engine, platform=sys.platform, sdk=_sdk())
        self.group, self.token, self.attest = group, token, attest
        self.tell, self.clock, self.patience_s = on_event, clock, patience_s
        self.cancel = client.cancel
        self.summary = Summary()
        self.outbox = Outbox(
            folder, client, self.pipeline, self.summary, lambda event: self.tell(event), lambda: self.clock()
        )
        self._offline: tuple[int, float] | None = None  # failures in a row, and when they began

    def run(
        self, rounds: int | None = None, *, until: Callable[[], bool] = lambda: False, once: bool = False
    ) -> Summary:
        """Take part.

        Args:
            rounds: end after so many accepted updates; None: when the federation trains no more.
            until: asked between tasks; True ends.
            once: check in once; do the task if there is one, and wait for none.

        Raises:
            ServerProblem: the aggregator will not have this device (revoked, enrolment refused, another model).
            UnreachableError: out of reach for longer than ``patience_s``; what is finished waits in the folder.
            NotTheAggregatorError: something else answers at the address, or at a part of it. Where the aggregator was
                heard from before and no longer is, the network may have changed, as a phone's does: then only after
                ``patience_s``, but with ``once`` at once.
            TooLargeOnTheWayError: something between does not let the update pass; it waits in the folder.
            EngineError: this device cannot train.
            ProtocolError: the aggregator's answer is none of this protocol.
        """
        self.outbox.go_on()
        joined = asked = False
        blocked = 0  # times in a row that a part of the address alone was not the aggregator's
        while not self.cancel.is_set():
            try:
                if not joined:
                    self._join()
                    joined = True
                self.outbox.flush()
                if rounds is not None and self.summary.rounds >= rounds:
                    return self._end("rounds")
                if once and asked:
                    return self._end("once")
                if until():
                    return self._end("until")
                ended = self._step(once)
                asked, self._offline, blocked = True, None, 0
                if ended is not None:
                    return self._end(ended)
            except (UnreachableError, ServerProblem) as error:
                if isinstance(error, ServerProblem) and not error.passing:
                    raise
                self._wait_offline(error)
            except NotTheAggregatorError as error:
                if once or not self.client.reached:
                    raise
                blocked = blocked + 1 if self._answers() else 0
                if blocked > 1:  # the first time, a sign-in may have been in between
                    raise
                self._wait_offline(error)
        return self._end("cancelled")

    def measure(self) -> events.Measured:
        """Fetch the newest shared values and measure them on the test part; nothing of it is sent.

        Raises:
            UnreachableError, ServerProblem: they could not be fetched.
            NoExamplesError: there is nothing to measure on.
        """
        self._join()
        latest = self.client.latest()
        sums = self.pipeline.measure_shared(self._fetch("global", latest.sets["global"]))
        found = events.Measured(
            latest.version,
            {name: total / weight for name, (total, weight) in sums.items()},
            max(weight for _, weight in sums.values()),
        )
        self.tell(found)
        return found

    def leave(self) -> None:
        """Give the credential back; the personal state stays."""
        membership = self.folder.membership
        if membership is None:
            return
        self._check_server(membership)
        self.client.credential = membership.credential
        try:
            self.client.leave()
        except ServerProblem as problem:
            if problem.code not in _GONE:  # else it left already, and the answer was lost
                raise
        self.folder.forget()

    # -- joining

    def _join(self) -> None:
        info = self.client.federation()
        if info.bundle != self.model.bundle:
            raise DeviceError(
                f"the federation trains {info.bundle.name} {info.bundle.version}, this device has "
                f"{self.model.id.name} {self.model.id.version}"
                + (" (its tensors differ)" if info.bundle.name == self.model.id.name else ""),
                mend="give the device the federation's bundle",
            )
        membership = self.folder.membership
        again = membership is not None
        if membership is None:
            enrolment = Enrolment(
                bundle=self.model.bundle, token=self.token, group=self.group, attestation=self._attested(info)
            )
            membership = self.folder.join(self.client.server, self.client.enrol(enrolment))
        else:
            self._check_server(membership)
        self.client.credential = membership.credential
        self.tell(events.Joined(membership.device, again))

    def _check_server(self, membership: Membership) -> None:
        if membership.server != self.client.server:
            raise DeviceFolderError(
                f"{self.folder.directory} belongs to a device of {membership.server}",
                mend="give another folder for another server; the credential goes to its own only",
            )

    def _attested(self, info: FederationInfo) -> Attestation | None:
        if not info.attestation:
            return None
        if self.attest is None:
            raise DeviceError(
                f"the federation asks for an attestation ({', '.join(info.attestation)})",
                mend="run on a platform that gives one, or ask the operator for a federation without",
            )
        return self.attest(self.client.challenge().challenge, info.attestation)

    # -- a task

    def _step(self, once: bool) -> Ended | None:
        """Check in, and do what the answer says; why this was the last time, if it was."""
        facts = CheckIn(
            bundle=self.model.bundle, examples=self.pipeline.training_examples(), facts=self.facts
        )
        asked = self.clock()
        answer = self.client.check_in(facts)
        if answer.status == "done":
            return "done"
        if answer.status == "wait":
            seconds = max(answer.retry_after_s or 0.0, 0.05)
            self.tell(events.Waiting(seconds, answer.reason or ""))
            if not once:
                self.cancel.wait(seconds)
            return None
        if answer.task is None:
            raise ProtocolError("the check-in gave a task that is missing", mend="update the aggregator")
        self._offline = None
        return self._do(answer.task, asked + answer.task.expires_in_s)

    def _do(self, task: RoundTask, deadline: float) -> Ended | None:
        self.tell(events.Assigned(task.round, task.version))
        if self.outbox.holds(task.id):
            self.cancel.wait(1.0)  # it is finished; only sending is left
            return None
        try:
            self.pipeline.accept(task)
            sets = self._sets(task)
            stop = _Deadline(self.cancel, self.clock, deadline)
            done = self.pipeline.carry_out(task, sets, on_progress=self._progress, cancel=stop)
            if done is not None:
                self.outbox.put(task, deadline, done)
            elif not self.cancel.is_set():
                raise DeclineTask("too_slow", "the task's time is over")
            # Cancelled by the user: the task stays ours until its deadline, and its checkpoint too.
        except DeclineTask as declined:
            self._decline(task, declined.reason, declined.why)
            if declined.reason == "privacy":  # the next task would be no better
                return "privacy"
        except StorageFullError as error:
            self._decline(task, "storage", error.message)
        except ServerProblem as problem:
            if problem.code not in OVER:
                raise
            self.outbox.drop(task.id, "task", problem.message)
        except EngineError as error:
            self._decline(task, "engine", error.message)
            raise
        except MemoryError:
            self._decline(task, "out_of_memory", "there is not enough memory for the task")
        return None

    def _sets(self, task: RoundTask) -> dict[str, dict[str, np.ndarray]]:
        """Download what the plan reads, each digest once."""
        if "global" not in task.sets:
            raise ProtocolError("the task names no set 'global'", mend="update the aggregator")
        self.folder.keep_sets(what.sha256 for what in task.sets.values())
        found = {}
        for name, what in task.sets.items():
            if what.bytes > self.model.most_set_bytes():
                raise DeclineTask("plan", f"the set {name!r} has {what.bytes} bytes, more than the model can")
            try:
                found[name] = self._fetch(name, what)
            except (TensorFileError, NonFiniteError) as error:
                raise DeclineTask("plan", error.message) from error
        return found

    def _fetch(self, name: str, what: Download) -> dict[str, np.ndarray]:
        values = self.folder.load_set(what.sha256)
        cached = values is not None
        if values is None:
            download(self.client, what, self.folder.set_path(what.sha256))
            values = self.folder.load_set(what.sha256)
        if values is None:
            raise StorageFullError(f"the set {name!r} vanished from the disk", mend="check the disk")
        self.model.check_set(name, values)
        self.tell(events.Downloaded(name, what.bytes, cached))
        return values

    def _decline(self, task: RoundTask, reason: str, why: str) -> None:
        self.tell(events.Declined(task.round, reason, why))
        self.summary.declined[reason] = self.summary.declined.get(reason, 0) + 1
        try:
            self.client.decline(task.id, Decline.model_validate({"reason": reason}))
        except ServerProblem as problem:
            if problem.code not in OVER:
                raise

    # -- waiting

    def _answers(self) -> bool:
        """Whether the aggregator does, at the address that needs no credential."""
        try:
            self.client.federation()
        except (UnreachableError, ServerProblem, NotTheAggregatorError):
            return False
        return True

    def _wait_offline(self, error: PflError) -> None:
        failures, since = self._offline or (0, self.clock())
        if self.patience_s is not None and self.clock() - since >= self.patience_s:
            raise error
        self._offline = failures + 1, since
        told = error.retry_after_s if isinstance(error, UnreachableError | ServerProblem) else None
        seconds = self.client.pause(failures + 1, told)
        self.tell(events.Offline(seconds, error.message))
        self.cancel.wait(seconds)

    def _progress(self, at: Progress) -> None:
        self.tell(events.Stepped(at.step, at.of, at.loss))

    def _end(self, why: Ended) -> Summary:
        self.summary.ended = why
        self.summary.bytes_up, self.summary.bytes_down = self.client.traffic.up, self.client.traffic.down
        return self.summary


class _Deadline:
    """Stops training when the user wants it, or when the task is over."""

    def __init__(self, cancel: threading.Event, clock: Callable[[], float], at: float) -> None:
        self.cancel, self.clock, self.at = cancel, clock, at

    def is_set(self) -> bool:
        return self.cancel.is_set() or self.clock() >= self.at


def _sdk() -> str:
    """Name and version of this client."""
    try:
        return f"pfl-mobile-python/{importlib.metadata.version('pfl-mobile')}"
    except importlib.metadata.PackageNotFoundError:  # run from its source
        return "pfl-mobile-python"
