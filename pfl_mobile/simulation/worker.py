"""What one process does in a round: rows in, changes out, for a fixed piece of the cohort.

A job's clients and their order are part of the study's settings and not of the number of processes, so the results
are the same bits wherever a job runs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from pfl_mobile.data.failures import diverged, reason, unusable
from pfl_mobile.data.finite import finite
from pfl_mobile.data.user_rows import read_rows, rows_digest
from pfl_mobile.errors import DataError, NoExamplesError, PflError
from pfl_mobile.files.sealed import digest
from pfl_mobile.local.phases import Work, served
from pfl_mobile.plan.upload import UpdateLayout
from pfl_mobile.rows import Rows
from pfl_mobile.simulation.pool import Refs, views
from pfl_mobile.simulation.row_check import RowCheck
from pfl_mobile.simulation.states import RowFormat
from pfl_mobile.strategies.weighting import SummedBy, weights_of
from pfl_mobile.vectorized.cohort import CohortTrainer, Outcome
from pfl_mobile.vectorized.compiled import trace_evaluate, trace_step
from pfl_mobile.vectorized.lanes import SimulatedClient

if TYPE_CHECKING:
    from pfl_mobile.data.populations import Population
    from pfl_mobile.modules.model import PersonalizedModel
    from pfl_mobile.plan.schema import Plan
    from pfl_mobile.programs.tasks import Batch, Task

Sets = Mapping[str, Mapping[str, np.ndarray]]
_KEYS = itertools.count()
#: Training rows of a user that its losses before and after are measured on: what tells whether training fell apart.
_LOOKED_AT = 256


def spread(rows: Rows, most: int) -> Rows:
    """At most so many of the rows that count, evenly over all of them, as they may be sorted."""
    weight = rows["weight"]
    counting = np.flatnonzero(weight.reshape(len(weight), -1).any(axis=1))
    if len(counting) <= most:
        return rows
    chosen = counting[np.arange(most) * len(counting) // most]
    return {name: value[chosen] for name, value in rows.items()}


class Trainer(Protocol):
    """Trains and evaluates many clients: ``cohort.CohortTrainer``."""

    def run(
        self,
        plan: Plan,
        clients: Sequence[SimulatedClient],
        start: Mapping[str, np.ndarray],
        sets: Mapping[str, Any],
    ) -> list[Outcome]:
        """Train every client."""

    def evaluate(
        self,
        rows: Sequence[Rows],
        tensors: Sequence[Mapping[str, np.ndarray]],
        start: Mapping[str, np.ndarray],
    ) -> list[dict[str, float]]:
        """Metrics of every client."""


@runtime_checkable
class SummingTrainer(Trainer, Protocol):
    """A trainer that can add up changes while it trains."""

    def run_summed(
        self,
        plan: Plan,
        clients: Sequence[SimulatedClient],
        start: Mapping[str, np.ndarray],
        sets: Mapping[str, Any],
        weights: Sequence[float],
    ) -> tuple[list[Outcome], dict[str, np.ndarray]]:
        """Train every client; by name the sum of weight * (tensor - its value in the set ``global``)."""


def cohort_trainer(setup: Setup) -> Trainer:
    """The trainer of a setup, as usual; whoever forks from here inherits its traces."""
    trainer = CohortTrainer(setup.model, setup.task, setup.example, lanes=setup.lanes, device=setup.device)
    trainer.prepare()
    return trainer


@dataclass(frozen=True)
class Setup:
    """What every worker of a study has. Picklable where its parts are.

    Attributes:
        model: with its values as shipped.
        task: loss and metrics.
        example: one batch; its first axis is the batch size.
        population: the users.
        lanes: clients trained at once; None leaves it to the trainer.
        device: of the trainer.
        trainer: makes the trainer.
        general: examples of many users, to measure what a user's own model has forgotten; None measures nothing.
    """

    model: PersonalizedModel
    task: Task
    example: Batch
    population: Population
    lanes: int | None = None
    device: str = "cpu"
    trainer: Callable[[Setup], Trainer] = field(default=cohort_trainer, repr=False)
    general: Rows | None = field(default=None, repr=False)

    def values(self) -> dict[str, np.ndarray]:
        """The shipped values of the tensors that gradients train, float32."""
        trained = {t.name for t in self.model.device_tensors() if t.update == "gradient"}
        return {n: v.cpu().numpy() for n, v in self.model.values().items() if n in trained}

    def program_digest(self) -> str | None:
        """Digest of what model and task compute in a step and an evaluation; None with a trainer of one's own.

        It is of the traced operators, so that it knows another forward or loss under the same name, and does not
        mind a comment or another place of the same code. Weights count elsewhere.
        """
        if self.trainer is not cohort_trainer:
            return None
        known = {t.data_ptr() for t in (*self.model.parameters(), *self.model.buffers()) if t.numel()}
        graphs = [trace(self.model, self.task, self.example) for trace in (trace_step, trace_evaluate)]
        return digest({}, "\n".join(text for graph in graphs for text in graph.text(known)))


@dataclass(frozen=True)
class TrainTask:
    """What the jobs of one round have in common.

    Attributes:
        plan: of the devices.
        changes: layout of a row of changes.
        states: shapes of what a device keeps.
        start: the tensors that a device without a state starts from.
        sets: the sets sent to all, ``global`` among them.
        summed_by: None gives a row of changes for each client. Otherwise each job has one row, the weighted sum
            over its clients that are well; weights are the numbers of ``examples``, or one for all ``devices``.
        note_rows: whether records have a digest of the rows.
        key: different for every task of this process.
    """

    plan: Plan
    changes: UpdateLayout
    states: Mapping[str, tuple[int, ...]]
    start: Refs
    sets: Mapping[str, Refs]
    summed_by: SummedBy | None = None
    note_rows: bool = False
    key: int = field(default_factory=lambda: next(_KEYS))


@dataclass(frozen=True)
class EvaluateTask:
    """What the jobs of one evaluation have in common.

    Attributes:
        plan: whose ``serve`` says what predictions use.
        personal: run on every device before its own model is measured; None measures the state it has.
        part: ``test`` or ``train``: the rows that are measured.
        initial: the shipped values, to tell whether training has made anything better.
        states, start, sets, key: as for training.
    """

    plan: Plan
    personal: Plan | None
    part: str
    initial: Refs
    states: Mapping[str, tuple[int, ...]]
    start: Refs
    sets: Mapping[str, Refs]
    key: int = field(default_factory=lambda: next(_KEYS))


@dataclass(frozen=True)
class Job:
    """A fixed piece of the cohort.

    Attributes:
        first: place of its first client in the cohort.
        clients: indexes in the population.
        seeds: of each client's shuffles.
        sets: of each client alone; empty where no client has any.
        reads: row of each client's state; -1 for none.
        writes: row for each client's new state; -1 where nothing is kept.
        number: its place among the jobs, where each has one row for the sum of its changes; else None.
    """

    first: int
    clients: tuple[int, ...]
    seeds: tuple[int, ...]
    sets: tuple[Mapping[str, Refs], ...]
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    number: int | None = None

    @property
    def rows(self) -> slice:
        """Its rows of changes among those of all jobs."""
        first = self.first if self.number is None else self.number
        return slice(first, first + (len(self.clients) if self.number is None else 1))


@dataclass(frozen=True, slots=True)
class Record:
    """What is told of a client that trained.

    Attributes:
        client: index in the population.
        examples: rows with a positive weight.
        steps: optimizer steps.
        reports: what the plan measured, and ``loss``.
        failure: why it must not be merged, ``<error>: <reason>``; None when all is well.
        rows: digest of its rows, where the task asks for it.
    """

    client: int
    examples: int = 0
    steps: int = 0
    reports: Mapping[str, float] = field(default_factory=dict)
    failure: str | None = None
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class ClientEvaluation:
    """What was measured on a client's rows.

    Attributes:
        client: index in the population.
        examples: what was measured and counts: rows, or labels where a row has several.
        shared: metrics of the values the server sent (those of its group); empty without rows.
        personal: metrics of the device's own model; None where it has none of its own.
        failure: why the device could not make its own model, or be measured, ``<error>: <reason>``.
        general: metrics of the device's own model on the general examples; None without them, or without a model
            of its own.
        general_shared: the same of the values that the server sends to all.
        steps: optimizer steps of the personal plan.
        train_examples: training rows with a positive weight; 0 where they are unusable.
        losses: on the training rows, or 256 of more, with the shipped values and with the model that the device ends
            with; None for a failure.
    """

    client: int
    examples: int
    shared: dict[str, float]
    personal: dict[str, float] | None
    failure: str | None = None
    general: dict[str, float] | None = None
    general_shared: dict[str, float] | None = None
    steps: int = 0
    train_examples: int = 0
    losses: tuple[float, float] | None = None


@dataclass
class JobArrays:
    """The arrays that a job reads and writes.

    Attributes:
        pool: bytes that the task's references point into, uint8.
        before: state row of each client, float32; None for none.
        after: rows for the new states, float32; empty where nothing is kept.
        changes: the job's rows of changes, float32 [clients, P], or [1, P] for their sum.
    """

    pool: np.ndarray
    before: Sequence[np.ndarray | None]
    after: Sequence[np.ndarray]
    changes: np.ndarray


class Worker:
    """Carries out jobs. One thread at a time."""

    def __init__(self, setup: Setup) -> None:
        """Make the trainer; the population is asked for rows when a job needs them."""
        self.setup = setup
        self.trainer = setup.trainer(setup)
        self._fits = RowCheck(setup.task, setup.example)
        self._task: tuple[int, dict[str, np.ndarray], Sets, RowFormat] | None = None

    @property
    def lanes(self) -> int | None:
        """Clients trained at once, after measuring."""
        lanes: int | None = getattr(self.trainer, "lanes", self.setup.lanes)
        return lanes

    def run(self, task: TrainTask | EvaluateTask, job: Job, memory: JobArrays) -> list[Any]:
        """``train`` or ``evaluate``, as the task says."""
        return (
            self.train(task, job, memory) if isinstance(task, TrainTask) else self.evaluate(task, job, memory)
        )

    def train(self, task: TrainTask, job: Job, memory: JobArrays) -> list[Record]:
        """Train the job's clients; rows of changes and states of those that fail hold nothing of use.

        Raises:
            PflError: what is wrong is not one client's: the plan, the model.
        """
        start, sets, form = self._prepare(task, memory.pool)
        records: list[Record | None] = [None] * len(job.clients)
        ready: list[SimulatedClient] = []
        places: list[int] = []
        for i, index in enumerate(job.clients):
            try:
                rows, examples = self._rows(index, "train")
            except (DataError, NoExamplesError) as error:
                records[i] = Record(index, failure=reason(error))
                continue
            own = {name: views(refs, memory.pool) for name, refs in job.sets[i].items()} if job.sets else {}
            ready.append(self._client(task.plan, rows, job.seeds[i], memory.before[i], form, own))
            places.append(i)
            records[i] = Record(index, examples, rows=rows_digest(rows) if task.note_rows else None)
        if task.summed_by is None:
            trained = self._trained(task, ready, start, sets, [memory.changes[i] for i in places])
        else:
            weights = weights_of(
                [told.examples for told in records if told and not told.failure], task.summed_by
            )
            trained = self._summed(task, ready, start, sets, weights.tolist(), memory.changes[0])
        for i, (outcome, problem) in zip(places, trained, strict=True):
            if problem is None and form.size:
                bad = form.pack(memory.after[i], outcome.tensors, outcome.copies)
                problem = bad and diverged(f"{bad} is not finite after training")
            told = records[i]
            assert told is not None
            records[i] = replace(told, steps=outcome.steps, reports=outcome.reports, failure=problem)
        return [record for record in records if record is not None]

    def _trained(
        self,
        task: TrainTask,
        clients: Sequence[SimulatedClient],
        start: dict[str, np.ndarray],
        sets: Sets,
        rows: Sequence[np.ndarray],
    ) -> list[tuple[Outcome, str | None]]:
        """Write each client's change into its row; the outcomes, and why one must not be merged."""
        trained = []
        found = self._run(task.plan, clients, start, sets)
        for client, (outcome, problem), row in zip(clients, found, rows, strict=True):
            if problem is None and task.changes.size:
                problem = _write_change(task.changes, client, outcome, sets["global"], row)
            trained.append((outcome, problem))
        return trained

    def _summed(
        self,
        task: TrainTask,
        clients: Sequence[SimulatedClient],
        start: dict[str, np.ndarray],
        sets: Sets,
        weights: Sequence[float],
        total: np.ndarray,
    ) -> list[tuple[Outcome, str | None]]:
        """As ``_trained``, with the weighted sum of the changes alone."""
        if clients and isinstance(self.trainer, SummingTrainer):
            try:
                outcomes, changes = self.trainer.run_summed(task.plan, clients, start, sets, weights)
            except (PflError, MemoryError):
                raise
            except Exception:  # somebody's rows make it raise: whose, ``_run`` finds out
                pass
            else:
                task.changes.pack(changes, total)
                if finite(total):
                    return [(outcome, diverged(outcome.failure)) for outcome in outcomes]
        # One by one, as the trainer cannot add up, or to find out whose change has overflowed or whose rows raise.
        rows = np.empty((len(clients), len(total)), np.float32)
        trained = self._trained(task, clients, start, sets, list(rows))
        total[:] = 0
        for row, weight, (_, problem) in zip(rows, weights, trained, strict=True):
            if problem is None:
                total += row * np.float32(weight)
        return trained

    def _run(
        self, plan: Plan, clients: Sequence[SimulatedClient], start: dict[str, np.ndarray], sets: Sets
    ) -> list[tuple[Outcome, str | None]]:
        """Train clients; their outcomes, and why one must not be used.

        Where training raises it is done one by one, so that it is the failure of those whose rows make it raise (a
        token that the model's table does not have, for instance).
        """
        try:
            outcomes = self.trainer.run(plan, clients, start, sets) if clients else []
        except (PflError, MemoryError):  # not of one client: the plan, the model, the machine
            raise
        except Exception as error:
            if len(clients) == 1:
                why = reason(unusable(error, "the model cannot be trained on its rows"))
                return [(Outcome({}, {}, {}, 0), why)]
            return [pair for client in clients for pair in self._run(plan, [client], start, sets)]
        return [(outcome, diverged(outcome.failure)) for outcome in outcomes]

    def _measure(
        self,
        rows: Sequence[Rows],
        tensors: Sequence[dict[str, np.ndarray]],
        start: Mapping[str, np.ndarray],
        what: str,
    ) -> list[tuple[dict[str, float], str | None]]:
        """Metrics of models on rows, and why they cannot be used: as for ``_run``, or one is not finite."""
        try:
            found = self.trainer.evaluate(rows, tensors, start) if rows else []
        except (PflError, MemoryError):
            raise
        except Exception as error:
            if len(rows) == 1:
                return [({}, reason(unusable(error, f"{what} cannot be run on its rows")))]
            alone = zip(rows, tensors, strict=True)
            return [pair for one, own in alone for pair in self._measure([one], [own], start, what)]
        return [(metrics, _not_finite(metrics, what)) for metrics in found]

    def evaluate(self, task: EvaluateTask, job: Job, memory: JobArrays) -> list[ClientEvaluation]:
        """Measure the values of the server and each device's own on its rows.

        Training rows are looked at too: a device that cannot train is in no model, and a failure.
        """
        start, sets, form = self._prepare(task, memory.pool)
        failures: list[str | None] = [None] * len(job.clients)

        def note(place: int, why: str | None) -> None:
            failures[place] = failures[place] or why

        measured: list[Rows] = []
        training: list[Rows | None] = []
        examples = [0] * len(job.clients)
        for i, index in enumerate(job.clients):
            rows, own = self._fits.nothing, None
            try:
                own, examples[i] = self._rows(index, "train")
            except (DataError, NoExamplesError) as error:
                note(i, reason(error))
            try:
                rows = self._checked_rows(index, task.part) if own is None or task.part == "test" else own
            except DataError as error:
                note(i, reason(error))
            measured.append(rows)
            training.append(own)
        shared: list[dict[str, np.ndarray]] = []
        clients: list[SimulatedClient] = []
        for i, rows in enumerate(measured):
            sent = {name: views(refs, memory.pool) for name, refs in job.sets[i].items()} if job.sets else {}
            common = start if "global" not in sent else {**start, **sent["global"]}
            shared.append({n: v for n, v in common.items() if v is not start[n]})
            clients.append(self._client(task.plan, rows, job.seeds[i], memory.before[i], form, sent))
        personal: list[dict[str, np.ndarray] | None]
        steps = [0] * len(job.clients)
        if task.personal is None:
            personal = [
                self._served(task.plan, start, one, c.tensors, c.copies, {**sets, **c.sets})
                if c.tensors or c.copies
                else None
                for one, c in zip(shared, clients, strict=True)
            ]
        else:
            personal = self._adapted(task.personal, training, clients, shared, start, sets, failures, steps)
        of_shared = self._measure(measured, shared, start, "the shared model")
        has_own = [i for i, tensors in enumerate(personal) if tensors is not None]
        own_rows, own_tensors = [measured[i] for i in has_own], [personal[i] or {} for i in has_own]
        found = self._measure(own_rows, own_tensors, start, "its own model")
        of_personal = dict(zip(has_own, found, strict=True))
        for i, (_, why) in [*enumerate(of_shared), *of_personal.items()]:
            note(i, why)
        general: dict[int, dict[str, float]] = {}
        general_shared = None
        if self.setup.general is not None and has_own:
            models = [{}, *own_tensors]
            found = self._measure(
                [self.setup.general] * len(models), models, start, "a model on others' rows"
            )
            general_shared = found[0][0]
            for i, (metrics, why) in zip(has_own, found[1:], strict=True):
                general[i] = metrics
                note(i, why)
        ends = [one if own is None else own for own, one in zip(personal, shared, strict=True)]
        initial = {**start, **views(task.initial, memory.pool)}
        losses = self._training_losses(training, ends, start, initial, failures)
        return [
            ClientEvaluation(
                index,
                int(np.count_nonzero(measured[i]["weight"] > 0)),
                of_shared[i][0],
                of_personal[i][0] if i in of_personal else None,
                failures[i],
                general.get(i),
                general_shared,
                steps[i],
                examples[i],
                losses[i],
            )
            for i, index in enumerate(job.clients)
        ]

    def _training_losses(
        self,
        training: Sequence[Rows | None],
        ends: Sequence[dict[str, np.ndarray]],
        start: dict[str, np.ndarray],
        initial: dict[str, np.ndarray],
        failures: Sequence[str | None],
    ) -> list[tuple[float, float] | None]:
        """Each client's loss on its training rows, or some of many, with the shipped values, and with the model that
        it ends with.
        """
        places = [i for i, rows in enumerate(training) if rows is not None and failures[i] is None]
        rows = [spread(rows, _LOOKED_AT) for rows in (training[i] for i in places) if rows is not None]
        before = self._measure(rows, [{}] * len(rows), initial, "the shipped model")
        after = self._measure(rows, [ends[i] for i in places], start, "the trained model")
        found: list[tuple[float, float] | None] = [None] * len(training)
        for i, (one, _), (other, _) in zip(places, before, after, strict=True):
            found[i] = (one.get("loss", math.nan), other.get("loss", math.nan))
        return found

    def _adapted(
        self,
        plan: Plan,
        training: Sequence[Rows | None],
        clients: Sequence[SimulatedClient],
        shared: Sequence[dict[str, np.ndarray]],
        start: dict[str, np.ndarray],
        sets: Sets,
        failures: list[str | None],
        steps: list[int],
    ) -> list[dict[str, np.ndarray] | None]:
        """What each device serves after the personal plan, its steps in ``steps``; None where it fails, and why in
        ``failures``.
        """
        ready: list[SimulatedClient] = []
        places: list[int] = []
        for i, (rows, known) in enumerate(zip(training, clients, strict=True)):
            if failures[i] is None and rows is not None:
                ready.append(SimulatedClient(rows, known.seed, known.tensors, known.copies, known.sets))
                places.append(i)
        personal: list[dict[str, np.ndarray] | None] = [None] * len(clients)
        outcomes = self._run(plan, ready, start, sets)
        for i, client, (outcome, problem) in zip(places, ready, outcomes, strict=True):
            steps[i], failures[i] = outcome.steps, problem
            if problem is None:
                own = {**sets, **client.sets}
                personal[i] = self._served(plan, start, shared[i], outcome.tensors, outcome.copies, own)
        return personal

    @staticmethod
    def _served(
        plan: Plan,
        start: dict[str, np.ndarray],
        shared: dict[str, np.ndarray],
        tensors: Mapping[str, np.ndarray],
        copies: Mapping[str, Mapping[str, np.ndarray]],
        sets: Sets,
    ) -> dict[str, np.ndarray]:
        """The served tensors that differ from the common start."""
        work = Work({**start, **shared, **tensors}, {name: dict(values) for name, values in copies.items()})
        values = served(plan, work, sets)
        return {name: value for name, value in values.items() if value is not start.get(name)}

    def _prepare(
        self, task: TrainTask | EvaluateTask, pool: np.ndarray
    ) -> tuple[dict[str, np.ndarray], Sets, RowFormat]:
        # The arrays are the same objects for all jobs of a task, so that a trainer can recognize them.
        if self._task is None or self._task[0] != task.key:
            sets = {name: views(refs, pool) for name, refs in task.sets.items()}
            self._task = (task.key, views(task.start, pool), sets, RowFormat(task.states))
        return self._task[1:]

    def _client(
        self,
        plan: Plan,
        rows: Rows,
        seed: int,
        before: np.ndarray | None,
        form: RowFormat,
        sets: Sets,
    ) -> SimulatedClient:
        tensors, copies = form.unpack(before) if before is not None and plan.start == "current" else ({}, {})
        return SimulatedClient(rows=rows, seed=seed, tensors=tensors, copies=copies, sets=sets)

    def _checked_rows(self, index: int, part: str) -> Rows:
        """A client's rows, maybe none.

        Raises:
            DataError: they cannot be read, hold NaN or infinite values, do not belong together, or do not fit the
                model.
        """
        rows = read_rows(self.setup.population, index, part)
        self._fits.check(rows)
        return rows

    def _rows(self, index: int, part: str) -> tuple[Rows, int]:
        """As ``_checked_rows``, and how many of them count.

        Raises:
            NoExamplesError: none does.
        """
        rows = self._checked_rows(index, part)
        examples = count_examples(rows)
        if not examples:
            raise NoExamplesError(
                "no example with a positive weight", mend="leave users without examples out"
            )
        return rows, examples


def count_examples(rows: Rows) -> int:
    """Rows with a positive total weight."""
    weight = rows["weight"]
    return int(np.count_nonzero(weight.reshape(len(weight), -1).sum(axis=1) > 0)) if len(weight) else 0


def _write_change(
    layout: UpdateLayout,
    client: SimulatedClient,
    outcome: Outcome,
    common: Mapping[str, np.ndarray],
    row: np.ndarray,
) -> str | None:
    """Write after minus before (as ``local.upload.change``) into the row [P]; why it cannot be merged, or None."""
    sent = client.sets.get("global", common)
    for key, place, shape in layout.items():
        target = row[place].reshape(shape)
        if key.startswith("copy:"):
            _, copy, name = key.split(":", 2)
            after, before = outcome.copies[copy].get(name), client.copies.get(copy, {}).get(name)
            if after is None:
                target[...] = 0
            elif before is None:
                target[...] = after
            else:
                np.subtract(after, before, out=target)
        else:
            np.subtract(outcome.tensors[key], sent[key], out=target)
    if finite(row):
        return None
    return diverged("the change has NaN or infinite values")


def _not_finite(metrics: Mapping[str, float], what: str) -> str | None:
    """The failure of a client whose metrics are not all numbers; None where they are."""
    bad = next((name for name, value in metrics.items() if not math.isfinite(value)), None)
    return bad and diverged(f"{bad} of {what} is not finite")
