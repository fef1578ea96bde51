"""The rounds of a study: choose a cohort, let its devices train, merge, keep a checkpoint, again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from pfl_mobile.data.failures import reason
from pfl_mobile.data.user_groups import Groups
from pfl_mobile.data.user_rows import known_size
from pfl_mobile.errors import ConfigError, TooFewUpdatesError
from pfl_mobile.federation.round import Answer, RoundDefinition, RoundPlan
from pfl_mobile.merge.rules import Average, MergeRule
from pfl_mobile.merge.updates import Updates
from pfl_mobile.plan.schema import Plan
from pfl_mobile.random import derive, uniform
from pfl_mobile.simulation.backend import ClientBackend, LocalBackend
from pfl_mobile.simulation.checkpoint import RunFolder
from pfl_mobile.simulation.cohorts import balanced, sample
from pfl_mobile.simulation.privacy import SimulatedPrivacy
from pfl_mobile.simulation.records import RoundRecord, all_failed, summary
from pfl_mobile.simulation.sending import Sent, send
from pfl_mobile.simulation.settings import decisive, effective
from pfl_mobile.simulation.states import RowFormat, kept_shapes
from pfl_mobile.simulation.worker import ClientEvaluation, EvaluateTask, Job, Record, Setup, TrainTask
from pfl_mobile.strategies.state import Local, RoundContext, Server
from pfl_mobile.strategies.strategy import Strategy
from pfl_mobile.strategies.weighting import SummedBy

if TYPE_CHECKING:
    from pfl_mobile.privacy import PrivacyConfig

#: What each of the draws of a round is for, as a key of ``derive``.
_COHORT, _DROPOUT, _CLIENT, _EVALUATION = range(4)
#: Rounds whose plans are looked at for what devices must keep, as plans may differ from round to round.
_PLANS = 20
#: A run ends when so many devices, or all, have failed since anybody was merged: no other would do better.
_HOPELESS = 100


@dataclass(frozen=True)
class FailingDevice:
    """A device that failed in rounds.

    Attributes:
        rounds: that it took part in.
        failed: those of them in which it failed.
        why: the last failure.
    """

    rounds: int
    failed: int
    why: str


class Rounds:
    """Runs a strategy over a population.

    Everything random comes from ``seed``, and nothing depends on how many processes there are: the same settings
    give the same bits on every backend, and after a kill and ``resume``.

    Args:
        strategy: plan and merge.
        setup: model, task, population.
        backend: where devices are trained; by default one process a core. One that is given is not closed.
        local: local training.
        rounds: how many merges.
        cohort_size: devices chosen for a round.
        seed: of cohorts, orders of examples and what the strategy draws.
        folder: for the checkpoint; None keeps nothing.
        resume: go on from the checkpoint in the folder, if there is one.
        dropout: probability in [0, 1) that a chosen device does not answer.
        job_size: devices in one job; None: as few as fill the trainer's lanes, in about 32 jobs where there are many.
            Results depend on it, and on the lanes, in the last bits.
        groups: group name to user indexes; by default the population's.
        checkpoint_every: rounds from one checkpoint to the next.
        choose: the cohort of a round, in place of a random one.
        rule: how means of updates are taken; by default the weighted mean. Under a robust one all devices count
            the same (``RoundDefinition.most_examples``).
        privacy: merge under differential privacy, with noise that repeats with ``seed``; cohorts are drawn as it says,
            and rounds end before its budget is exceeded.
        tamper: ``(round, updates)`` to the updates that the server gets in their place, to simulate attackers.
        client_seed: ``(round, client)`` to the seed of the client's shuffles, in place of a random one.
        stop: called with each round's record; True ends the run.
        progress: called with each round's record.

    Raises:
        ConfigError: a setting is out of range; the folder holds a run and ``resume`` is not set; the strategy does
            not fit the model.
        PrivacyError: the strategy cannot be private, or a robust rule would read single updates.
        OtherSettingsError: the folder holds a run with other settings or data.
        CheckpointError: the folder's files are damaged or in use.
    """

    def __init__(
        self,
        strategy: Strategy,
        setup: Setup,
        backend: ClientBackend | None = None,
        *,
        local: Local,
        rounds: int,
        cohort_size: int,
        seed: int = 0,
        folder: str | Path | None = None,
        resume: bool = False,
        dropout: float = 0.0,
        job_size: int | None = None,
        groups: Groups | None = None,
        checkpoint_every: int = 1,
        choose: Callable[[int], Sequence[int] | np.ndarray] | None = None,
        rule: MergeRule | None = None,
        privacy: PrivacyConfig | None = None,
        tamper: Callable[[int, Updates], Updates] | None = None,
        client_seed: Callable[[int, int], int] | None = None,
        stop: Callable[[RoundRecord], bool] | None = None,
        progress: Callable[[RoundRecord], None] | None = None,
    ) -> None:
        """Check the settings, and load the checkpoint where there is one."""
        count = len(setup.population)
        if not 1 <= cohort_size <= count:
            raise ConfigError(f"cohort_size is {cohort_size} of {count} users", mend=f"give 1 to {count}")
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout is {dropout}", mend="give a probability in [0, 1)")
        for name, value in (
            ("rounds", rounds),
            ("job_size", job_size),
            ("checkpoint_every", checkpoint_every),
        ):
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}", mend="give 1 or more")
        self.strategy, self.local, self.setup = strategy, local, setup
        self.rounds, self.cohort_size, self.seed, self.dropout = rounds, cohort_size, seed, dropout
        self.job_size = job_size
        self.groups = setup.population.groups if groups is None else groups
        self.checkpoint_every = checkpoint_every
        self.history: list[RoundRecord] = []
        self.stopped = False
        self.choose, self.client_seed, self._stop, self._progress = choose, client_seed, stop, progress
        self._labels = _labels(self.groups, count)
        self.initial = setup.values()
        self.rule, self.tamper = Average() if rule is None else rule, tamper
        self.definition = RoundDefinition(
            strategy,
            local,
            tuple(setup.model.device_tensors()),
            cohort=cohort_size,
            rule=self.rule,
            privacy=privacy,
            groups=self._labels is not None,
        )
        self.privacy = None
        if privacy is not None:
            if choose is not None and privacy.chooses_cohorts:
                raise ConfigError(
                    "choose= gives the cohorts, the privacy configuration says that they are drawn",
                    mend="leave choose= out, or set sampling to 'none' and min_separation to 1",
                )
            self.privacy = SimulatedPrivacy(privacy, seed, count, cohort_size)
            self.privacy.check_rounds(rounds)
        self.server = self.definition.begin(count, self.initial)
        self.definition.first_plan(self.server, derive(seed, 0))
        shapes: dict[str, tuple[int, ...]] = {}
        for number in range(min(rounds, _PLANS)):
            shapes |= kept_shapes(self.plan(number), self.server.table)
        self.folder = None if folder is None else Path(folder)
        told = self.settings() if folder else {}
        self._run = RunFolder(self.folder, RowFormat(shapes), told, resume, setup.population)
        self.states = self._run.states
        found = self._run.found
        if found is not None:
            found.put_into(self.server)
            self.stopped = found.stopped
            self.history = [RoundRecord.load(line) for line in self._run.history.lines]
            if self.setup.lanes != found.lanes:  # those of the run that was stopped
                self.setup = replace(self.setup, lanes=found.lanes)
        self._owned = backend is None
        self.backend: ClientBackend = LocalBackend() if backend is None else backend

    # -- running

    def run(self) -> Server:
        """All rounds that are left, or as many as the privacy budget allows.

        Raises:
            CohortFailedError: all devices, or a hundred of them, have failed since anybody was merged, or nobody was
                in any round. A round whose devices all fail is not the end otherwise: it is recorded, and merges
                nothing.
            NonFiniteError: a merge gave NaN or infinite values; the server is as it was before that round.
            OtherSettingsError: a device of a resumed run has other rows than before; likewise.
            WorkerDiedError: processes died again and again.
        """
        while self.server.round < self.rounds and not self.stopped:
            if self.privacy is not None and self.privacy.spent(self.server):
                self.stopped = True
                self._run.save(self.server, lanes=self.backend.lanes, stopped=True)
                break
            self.step()
        failures = [(client, why) for record in self.history for client, why in record.failed]
        if failures and not any(record.clients for record in self.history):
            raise all_failed(0, self.server.round - 1, failures)
        return self.server

    def step(self) -> RoundRecord:
        """One round; errors as ``run``."""
        began = time.perf_counter()
        self.backend.start(self.setup)
        number = self.server.round
        chosen = self.cohort(number)
        cohort = self._answering(number, chosen)
        if hasattr(
            self.setup.population, "size"
        ):  # so that no process waits for the one with the largest clients
            sizes = [known_size(self.setup.population, client) for client in cohort]
            cohort = balanced(cohort, sizes, self.effective_job_size())
        plan = self.plan(number)
        self._check_kept(plan, number)
        plan = _keeping_what_it_sends(plan)
        sent = self._send((plan,), cohort)
        known = self.definition.round_plan(plan)
        changes = known.layout
        wire = [self.strategy.bytes_on_wire(self.server, c, self.group(c)) for c in cohort]
        traffic = [(sent.bytes_down, 4 * changes.size) if found is None else found for found in wire]
        down, up = np.mean(traffic or [(0, 0)], axis=0).round().astype(int).tolist()
        records: list[Record] = []
        if not cohort and self.privacy is not None:  # a round that nobody answers is noise alone
            self._merge(known, np.empty((0, changes.size), np.float32), records, None)
        if cohort:
            by = self._summed_by(known, sent) if changes.size else None
            data = self._run.data  # rows that are in memory were looked at already
            note = data is not None and not data.complete
            task = TrainTask(plan, changes, self.states.form.layout.shapes, sent.start, sent.sets, by, note)
            writes = self.states.take(len(cohort))
            jobs = self._jobs(
                cohort, sent, writes, self.client_seed or self._seed_of, numbered=by is not None
            )
            try:
                records, matrix = self.backend.run(task, jobs, sent.pool, self.states)
                if data is not None:
                    data.note(records)
                records = self._merged(known, matrix, records, by, len(chosen))
            except BaseException:
                self.states.give_back(writes)
                raise
            good = [i for i, r in enumerate(records) if r.failure is None]
            self.states.adopt([cohort[i] for i in good], [writes[i] for i in good])
            self.states.give_back(w for w, r in zip(writes, records, strict=True) if r.failure is not None)
        if self.privacy is not None and changes.size:
            self.privacy.count(self.server)
        record = summary(
            number,
            records,
            dropped=len(chosen) - len(cohort),
            bytes_down=down,
            bytes_up=up,
            seconds=time.perf_counter() - began,
            epsilon=None if self.privacy is None else self.privacy.epsilon(self.server),
        )
        self.server.round = number + 1
        self.history.append(record)
        self._run.history.add(asdict(record))
        self.stopped = bool(self._stop and self._stop(record))
        if self.stopped or self.server.round >= self.rounds or self.server.round % self.checkpoint_every == 0:
            self._run.save(self.server, lanes=self.backend.lanes, stopped=self.stopped)
        if self._progress:
            self._progress(record)
        return record

    def evaluate(
        self, clients: Iterable[int] | None = None, *, part: str = "test", adapt: bool = True
    ) -> list[ClientEvaluation]:
        """Measure the server's values and each device's own model.

        Args:
            clients: who; by default all.
            part: ``test`` or ``train`` rows.
            adapt: whether devices first make their own models by the strategy's personal plan, where it has one;
                what they keep from the rounds is not changed.
        """
        if part not in ("test", "train"):
            raise ConfigError(f"part is {part!r}", mend="give 'test' or 'train'")
        self.backend.start(self.setup)
        who = list(range(len(self.setup.population))) if clients is None else [int(c) for c in clients]
        plan = self.plan(self.server.round)
        personal = self.strategy.personal_plan(self.context(self.server.round)) if adapt else None
        found: list[ClientEvaluation] = []
        # Piece by piece, so that sets of single devices do not pile up.
        size = max(self.cohort_size, 16 * self.effective_job_size())
        for first in range(0, len(who), size):
            piece = who[first : first + size]
            sent = self._send((plan, personal) if personal else (plan,), piece)
            initial = sent.pool.add_set(self.initial)
            shapes = self.states.form.layout.shapes
            task = EvaluateTask(plan, personal, part, initial, shapes, sent.start, sent.sets)
            jobs = self._jobs(piece, sent, [-1] * len(piece), self._evaluation_seed)
            found += self.backend.run(task, jobs, sent.pool, self.states)[0]
        return found

    def close(self) -> None:
        """Let go of the folder, and of the backend when it was not given."""
        if self._owned:
            self.backend.close()
        self._run.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- what a round is

    def context(self, number: int) -> RoundContext:
        """What the strategy builds the plan of a round from."""
        return RoundContext(self.server.table, self.local, number, derive(self.seed, number))

    def plan(self, number: int) -> Plan:
        """What a device does in a round."""
        return self.definition.plan(number, derive(self.seed, number))

    def cohort(self, number: int) -> list[int]:
        """The devices chosen for a round, before dropout.

        Raises:
            ConfigError: ``choose`` gave a device twice, none, or one that there is not.
        """
        count = len(self.setup.population)
        if self.choose is None and self.privacy is not None:
            return self.privacy.draw(derive(self.seed, number, _COHORT), number)
        if self.choose is None:
            return [int(i) for i in sample(derive(self.seed, number, _COHORT), count, self.cohort_size)]
        chosen = [int(i) for i in self.choose(number)]
        if not chosen or len(set(chosen)) != len(chosen) or min(chosen) < 0 or max(chosen) >= count:
            raise ConfigError(
                f"choose gave {len(chosen)} devices ({len(set(chosen))} different) for round {number}",
                mend=f"give at least one, none twice, each in 0..{count - 1}",
            )
        return chosen

    def group(self, client: int) -> str:
        """The name of a user's group; empty where there are no groups."""
        return "" if self._labels is None else self._labels[0][self._labels[1][client]]

    def settings(self) -> dict[str, Any]:
        """Everything that decides the results, as JSON values; a checkpoint is only resumed with the same."""
        return decisive(self)

    def effective(self) -> dict[str, Any]:
        """The effective configuration, defaults filled in, for printing."""
        return effective(self)

    # -- parts of a round

    def effective_job_size(self) -> int:
        """Devices in a job: as set, or by the lanes; 1 lane before the backend started."""
        return self.job_size or default_job_size(
            self.cohort_size, self.setup.lanes or self.backend.lanes or 1
        )

    def _send(self, plans: Sequence[Plan], clients: Sequence[int]) -> Sent:
        devices = [(client, self.group(client)) for client in clients]
        return send(self.definition, self.server, self.initial, plans, devices)

    def _seed_of(self, number: int, client: int) -> int:
        return derive(self.seed, number, _CLIENT, client)

    def _evaluation_seed(self, number: int, client: int) -> int:
        return derive(self.seed, number, _EVALUATION, client)

    def _answering(self, number: int, chosen: list[int]) -> list[int]:
        if not self.dropout:
            return chosen
        draws = uniform(derive(self.seed, number, _DROPOUT), len(chosen))
        return [client for client, draw in zip(chosen, draws, strict=True) if draw >= self.dropout]

    def _summed_by(self, known: RoundPlan, sent: Sent) -> SummedBy | None:
        """How devices count, where a job may add up the changes of its clients; None where each is needed."""
        alone = bool(sent.own or self.states.form.size or self.tamper is not None)
        return None if alone else self.definition.summed_by(self.server, known)

    def _jobs(
        self,
        clients: Sequence[int],
        sent: Sent,
        writes: Sequence[int],
        seed_of: Callable[[int, int], int],
        *,
        numbered: bool = False,
    ) -> list[Job]:
        reads = self.states.of(clients) if self.states.form.size else [-1] * len(clients)
        jobs: list[Job] = []
        size = self.effective_job_size()
        for first in range(0, len(clients), size):
            piece = slice(first, first + size)
            seeds = tuple(seed_of(self.server.round, client) for client in clients[piece])
            jobs.append(
                Job(
                    first,
                    tuple(clients[piece]),
                    seeds,
                    tuple(sent.own[piece]),
                    tuple(reads[piece]),
                    tuple(writes[piece]),
                    len(jobs) if numbered else None,
                )
            )
        return jobs

    def _merged(
        self,
        known: RoundPlan,
        matrix: np.ndarray,
        records: list[Record],
        by: SummedBy | None,
        chosen: int,
    ) -> list[Record]:
        """Merge; the records, all failures where so few of the cohort are left that the rule cannot merge them."""
        good = sum(r.failure is None for r in records)
        if not good:
            self._check_hope(records)
        try:
            self._merge(known, matrix, records, by)
        except TooFewUpdatesError as error:
            if good == chosen:  # nor could it in any other round
                raise
            records = [replace(r, failure=r.failure or reason(error)) for r in records]
            self._check_hope(records)
        return records

    def _check_hope(self, records: Sequence[Record]) -> None:
        """Raises CohortFailedError where no device can be expected to do better than those that have failed."""
        failures = [(r.client, r.failure or "") for r in records]
        since = self.server.round
        for record in reversed(self.history):
            if record.clients:
                break
            failures, since = [*record.failed, *failures], record.round
        if len({client for client, _ in failures}) >= min(len(self.setup.population), _HOPELESS):
            raise all_failed(since, self.server.round, failures)

    def troubled(self) -> dict[int, FailingDevice]:
        """The devices that failed in any round so far, by index."""
        failed: dict[int, list[str]] = {}
        for record in self.history:
            for client, why in record.failed:
                failed.setdefault(client, []).append(why)
        took = dict.fromkeys(failed, 0)
        for record in self.history if failed else ():
            for client in self._answering(record.round, self.cohort(record.round)):
                if client in took:
                    took[client] += 1
        return {client: FailingDevice(took[client], len(why), why[-1]) for client, why in failed.items()}

    def _merge(
        self, known: RoundPlan, matrix: np.ndarray, records: Sequence[Record], by: SummedBy | None
    ) -> None:
        good = [i for i, r in enumerate(records) if r.failure is None]
        if not known.layout.size or not (good or self.definition.central):
            return  # nothing is sent, or by nobody; a private sum has its noise
        told = [
            Answer(
                client=r.client,
                group=self.group(r.client),
                examples=r.examples,
                steps=r.steps,
                reports=r.reports,
            )
            for r in (records[i] for i in good)
        ]
        count = len(self.setup.population)
        if by is not None:
            self.definition.merge(self.server, self.definition.sums(known, matrix, told, count, by), None)
            return
        rows = matrix if len(good) == len(records) else matrix[good]
        received = self.definition.received(known, rows, told, count)
        if self.tamper is not None and told:
            received = self.tamper(self.server.round, received)
        private = None
        if self.privacy is not None:
            private = self.privacy.rounds(self.server)
            received = self.privacy.on_devices(private.clip_norm, self.server.round, received)
        given = self.definition.merge_input(received, private)
        self.definition.merge(self.server, given.updates, private)
        if self.privacy is not None and private is not None:
            self.privacy.keep(self.server, private)

    def _check_kept(self, plan: Plan, number: int) -> None:
        new = kept_shapes(plan, self.server.table).keys() - self.states.form.layout.shapes.keys()
        if new:
            raise ConfigError(
                f"from round {number} on devices keep {sorted(new)[0]!r}, which the plans of the first "
                f"{_PLANS} rounds do not",
                mend="let the strategy keep the same copies in all rounds",
            )


def default_job_size(cohort_size: int, lanes: int) -> int:
    """Devices in a job: enough to fill the lanes, in an even number of jobs, about 32 where the cohort is large."""
    jobs = -(-cohort_size // max(lanes, -(-cohort_size // 32)))
    return -(-cohort_size // (jobs + jobs % 2))


def _keeping_what_it_sends(plan: Plan) -> Plan:
    """The plan, whose copies are there after it while they are sent; states have no place for those not kept."""
    missing = [copy for copy in plan.upload_copies if plan.keep is not None and copy not in plan.keep]
    return plan.model_copy(update={"keep": (*(plan.keep or ()), *missing)}) if missing else plan


def _labels(groups: Groups, count: int) -> tuple[list[str], np.ndarray] | None:
    if not groups:
        return None
    codes = np.zeros(count, np.int32)
    for code, members in enumerate(groups.values()):
        codes[np.asarray(members)] = code
    return list(groups), codes
