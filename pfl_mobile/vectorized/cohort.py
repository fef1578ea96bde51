"""Local training of a whole cohort: the plan of a device, run for many clients at once."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pfl_mobile.errors import ConfigError, ExportError, NoExamplesError, TensorMismatchError, near
from pfl_mobile.modules.model import PersonalizedModel
from pfl_mobile.plan.check import check_plan
from pfl_mobile.plan.phases import Program
from pfl_mobile.plan.schema import Plan
from pfl_mobile.programs.tasks import Batch, Task
from pfl_mobile.rows import Rows, check_rows, weighted_rows
from pfl_mobile.vectorized.deferred import LateWeight
from pfl_mobile.vectorized.feed import Feed
from pfl_mobile.vectorized.lanes import Arrays, FlatSet, Flattened, Lanes, SimulatedClient
from pfl_mobile.vectorized.phases import measured, run_plan
from pfl_mobile.vectorized.steps import Steps

#: The program that a phase calls -> the graph that stands for it here.
_GRAPHS: Mapping[Program, str] = {"gradients": "step", "evaluate": "evaluate"}


@dataclass
class Outcome:
    """What training made of one client.

    Attributes:
        tensors: the gradient-trained device tensors afterwards; those from before where there is a failure.
        copies: the copies that the plan keeps.
        reports: what ``measure`` and ``choose`` phases found; ``loss``: mean training loss over all steps.
        steps: optimizer steps.
        failure: why this client must not be merged; None where all is well.
    """

    tensors: dict[str, np.ndarray]
    copies: dict[str, dict[str, np.ndarray]]
    reports: dict[str, float]
    steps: int
    failure: str | None = None


@dataclass(frozen=True)
class _Begun:
    """What all clients begin with.

    Attributes:
        row: the gradient-trained tensors, float32 [size].
        moved: those that stand for what clients have of their own.
        phases: as many phases of the plan are done with it.
    """

    row: np.ndarray
    moved: frozenset[str]
    phases: int


@dataclass(frozen=True)
class _Total:
    """A weighted sum of changes, float32 [size], and the weight of each client."""

    values: torch.Tensor
    weights: Sequence[float]


def most_lanes(device: str) -> int:
    """Clients that are trained at once where nobody says more and the model lets several be: 16, on a GPU 256."""
    return 16 if torch.device(device).type == "cpu" else 256


class CohortTrainer:
    """Runs a plan for many clients at once; to float32 accuracy what each alone gets from ``local.phases``.

    The same inputs, order of clients and ``lanes`` give the same bits. A client whose training diverges changes
    nothing for the others. PyTorch's threads are left as they are; on a CPU one thread in each of several
    processes is fastest.

    Args:
        model: the model of all clients, on the CPU.
        task: loss and metrics.
        example: one batch; its first axis is the batch size.
        lanes: how many clients one call of the program trains; None takes ``usual_lanes``.
        device: where training runs, for instance ``cpu`` or ``cuda``.

    Raises:
        ConfigError: the batch does not fit the task.
        ExportError: the model cannot be traced.
    """

    def __init__(
        self,
        model: PersonalizedModel,
        task: Task,
        example: Batch,
        *,
        lanes: int | None = None,
        device: str = "cpu",
    ) -> None:
        if lanes is not None and lanes < 1:
            raise ConfigError(f"lanes={lanes}", mend="give 1 or more, or None")
        self.device = torch.device(device)
        self._steps = Steps(model, task, example, self.device)
        self._lanes = lanes
        self._space = np.empty((0, self._steps.layout.size), np.float32)
        self._dtypes = {name: value.numpy().dtype for name, value in self._steps.batch.items()}
        self._values = {name: value.numpy() for name, value in model.values().items()}

    @property
    def lanes(self) -> int:
        """How many clients one call trains."""
        if self._lanes is None:
            self._lanes = self.usual_lanes()
        return self._lanes

    def usual_lanes(self) -> int:
        """A number that suits most models, the same on every machine: results depend on it in the last bits.

        One where convolutions are trained through, as a client's products fill a core there, or where an operator
        cannot be batched; else 16, or 256 on a GPU.
        """
        nodes = self._steps.graph("step").module.graph.nodes
        if self.device.type == "cpu" and any("convolution" in str(node.target) for node in nodes):
            return 1
        lanes = most_lanes(self.device.type)
        try:
            self._steps.graph("step", lanes)
        except ExportError:
            return 1
        return lanes

    def prepare(self) -> None:
        """Trace the model now: it takes autograd, which a forked process cannot use after its parent did."""
        for kind in ("step", "evaluate"):
            self._steps.graph(kind)
            self._steps.graph(kind, self.lanes)

    def run(
        self,
        plan: Plan,
        clients: Sequence[SimulatedClient],
        start: Arrays,
        sets: Mapping[str, Mapping[str, np.ndarray]],
    ) -> list[Outcome]:
        """Train every client; outcomes in the order of the clients.

        Args:
            plan: what each client does.
            clients: rows and personal state.
            start: device tensors common to all clients; the model's own for those it lacks.
            sets: sets common to all, ``initial`` and ``global`` among them.

        Raises:
            ConfigError: the plan has a phase that a cohort cannot run, or names what is not there.
            TensorMismatchError: rows or tensors do not fit the model.
        """
        return self._run(plan, clients, start, sets, None)

    def run_summed(
        self,
        plan: Plan,
        clients: Sequence[SimulatedClient],
        start: Arrays,
        sets: Mapping[str, Mapping[str, np.ndarray]],
        weights: Sequence[float],
    ) -> tuple[list[Outcome], dict[str, np.ndarray]]:
        """Train every client, and add up what comes of it: faster than one change after the other.

        Args:
            plan, clients, start, sets: as for ``run``; no client has a set ``global`` of its own.
            weights: of each client.

        Returns:
            The outcomes, without tensors and copies; and by name the sum of weight * (tensor - its value in
            ``global``) over the clients that have not failed, float32. The sum may be infinite where a change is.
        """
        total = _Total(torch.zeros(self._steps.layout.size, device=self.device), weights)
        outcomes = self._run(plan, clients, start, sets, total)
        return outcomes, self._steps.layout.read(total.values.cpu().numpy())

    def _run(
        self,
        plan: Plan,
        clients: Sequence[SimulatedClient],
        start: Arrays,
        sets: Mapping[str, Mapping[str, np.ndarray]],
        total: _Total | None,
    ) -> list[Outcome]:
        check_plan(plan, self._steps.table, {**sets, **_own_sets(clients)}, _names(c.copies for c in clients))
        first = self._start_row(start)
        rows: dict[int, Rows] = {}
        outcomes: dict[int, Outcome] = {}
        phases = plan.distinct_steps()
        needs_rows = any(phase.examples == "rows" for phase in phases)
        for k, client in enumerate(clients):
            self._check(client.rows)
            try:
                rows[k] = _counting(client.rows)
            except NoExamplesError as error:
                if not needs_rows:
                    rows[k] = client.rows
                    continue
                before = {} if total is not None else self._before(client, first)
                outcomes[k] = Outcome(before, {}, {}, 0, error.message)
        order = sorted(rows, key=lambda k: -len(rows[k]["weight"]))
        with torch.inference_mode():
            common = Flattened(sets, self._flat)
            kinds = sorted({_GRAPHS[program] for phase in phases for program in phase.programs})
            begun = self._begun(plan, clients, first, common)
            matrix = self._matrix(len(order))
            # where much is done for all lanes together, a group need not be as large as one of the programs
            sizes = [min(self.lanes, max(len(order), 1))] if self._steps.wide else self._sizes()
            for part, theta in self._groups(order, matrix, sizes):
                group = [clients[k] for k in part]
                lanes = self._group(group, [rows[k] for k in part], kinds, start, theta, common, begun)
                run_plan(plan, lanes, self._steps, self._sizes(len(part)), begun.phases)
                if total is not None:
                    weights = [
                        0.0 if failure else total.weights[k]
                        for k, failure in zip(part, lanes.failures, strict=True)
                    ]
                    lanes.add_changes(total.values, common["global"].flat[0], weights)
                for lane, k in enumerate(part):
                    outcomes[k] = self._outcome(plan, lanes, lane, first, summed=total is not None)
        return [outcomes[k] for k in range(len(clients))]

    def evaluate(
        self, rows: Sequence[Rows], tensors: Sequence[Arrays], start: Arrays
    ) -> list[dict[str, float]]:
        """Metrics of each client's rows with ``start`` overlaid by the client's tensors.

        Returns:
            ``loss`` and the task's metrics, sums divided by the weight; {} for a client without weighted rows.
        """
        results: list[dict[str, float]] = [{} for _ in rows]
        kept: dict[int, Rows] = {}
        for k, own in enumerate(rows):
            self._check(own)
            try:
                kept[k] = _counting(own)
            except NoExamplesError:
                continue
        order = sorted(kept, key=lambda k: -len(kept[k]["weight"]))
        with torch.inference_mode():
            first = self._start_row(start)
            common = not any(tensors[k] for k in order)
            for part, theta in self._groups(order, self._matrix(len(order)), self._sizes()):
                theta[: 1 if common else len(part)] = first
                group = [SimulatedClient(kept[k], 0, tensors[k]) for k in part]
                lanes = self._group(group, [kept[k] for k in part], ["evaluate"], start, theta, {}, None)
                metrics = measured(lanes, self._steps, self._sizes(), common=common)
                for lane, k in enumerate(part):
                    results[k] = {name: float(values[lane]) for name, values in metrics.items()}
        return results

    # -- parts of a run --------------------------------------------------------------------------------------

    def _sizes(self, most: int | None = None) -> list[int]:
        """Numbers of lanes to compile for, increasing; ``most`` is the last where it is given."""
        sizes, size = [self.lanes], self.lanes
        while size > 1:
            size = -(-size // 2)
            sizes.append(size)
        return sizes[::-1] if most is None else [*(s for s in sizes[::-1] if s < most), most]

    def _matrix(self, rows: int) -> np.ndarray:
        """A row for each client. The outcomes are views of it; it is used again when none is left.

        Fresh memory costs as much as several steps: the system clears every page of it.
        """
        # two references: the attribute and the argument of getrefcount
        if len(self._space) < rows or sys.getrefcount(self._space) > 2:
            self._space = np.empty((rows, self._steps.layout.size), np.float32)
        return self._space[:rows]

    @staticmethod
    def _groups(
        order: Sequence[int], matrix: np.ndarray, sizes: Sequence[int]
    ) -> Iterator[tuple[Sequence[int], np.ndarray]]:
        """Clients in groups of these sizes, large ones first, each with its rows of ``matrix``."""
        begin = 0
        for size in sizes[::-1]:
            while len(order) - begin >= size:
                yield order[begin : begin + size], matrix[begin : begin + size]
                begin += size
        if begin < len(order):
            yield order[begin:], matrix[begin:]

    def _check(self, rows: Mapping[str, np.ndarray]) -> None:
        for name, like in self._steps.batch.items():
            if name not in rows:
                raise TensorMismatchError(
                    f"the rows have no {name!r}", mend=f"give {sorted(self._steps.batch)}"
                )
            value = rows[name]
            if value.dtype != self._dtypes[name] or value.shape[1:] != like.shape[1:]:
                raise TensorMismatchError(
                    f"rows of {name!r} are {value.dtype} {list(value.shape)}, the model takes {self._dtypes[name]} "
                    f"[rows, {', '.join(map(str, like.shape[1:]))}]",
                    mend="encode the examples for this model",
                )

    def _flat(self, values: Mapping[str, np.ndarray], name: str) -> FlatSet:
        row = np.zeros((1, self._steps.layout.size), np.float32)
        held = self._steps.layout.write_scaled(row[0], values, f"the set {name!r}")
        return FlatSet(torch.from_numpy(row).to(self.device), [held])

    def _group(
        self,
        clients: Sequence[SimulatedClient],
        rows: Sequence[Rows],
        kinds: Sequence[str],
        start: Arrays,
        theta: np.ndarray,
        sets: Mapping[str, FlatSet],
        begun: _Begun | None,
    ) -> Lanes:
        steps = self._steps
        moved = begun.moved if begun else frozenset()
        kept = [{n: v for n, v in client.tensors.items() if n not in moved} for client in clients]
        wide = [n for n in steps.wide if begun and not any(n in tensors for tensors in kept)]
        if begun:
            end = 0
            for name in wide:
                place = steps.layout.places[name]
                theta[:, end : place.start] = begun.row[end : place.start]
                end = place.stop
            theta[:, end:] = begun.row[end:]
        for row, client, tensors in zip(theta, clients, kept, strict=True):
            self._known(client.tensors)
            steps.layout.write(row, tensors, "the client's tensor")
        used = {"weight"}.union(*(steps.inputs(kind) for kind in kinds))
        entries = [name for name in steps.batch if name in used]
        feed = Feed(rows, [c.seed for c in clients], steps.size, entries, self.device)
        others = {}
        for info in steps.table:
            if info.name in used and info.name not in steps.layout.places:
                common = start.get(info.name, self._values[info.name])
                own = [np.asarray(c.tensors.get(info.name, common)) for c in clients]
                others[info.name] = torch.from_numpy(np.stack(own)).to(self.device)
        values = torch.from_numpy(theta).to(self.device)
        lanes = Lanes(clients, feed, steps.layout, values, others, sets)
        if begun:
            common = torch.from_numpy(begun.row).to(self.device)
            for name in wide:
                view = steps.layout.view(values, name)
                lanes.late[name] = LateWeight(view, steps.layout.view(common[None], name, single=True))
        lanes.load_copies()
        return lanes

    def _begun(
        self, plan: Plan, clients: Sequence[SimulatedClient], first: np.ndarray, common: Mapping[str, FlatSet]
    ) -> _Begun:
        """Do once what the plan's first phases do for all: most plans begin by taking the server's values over."""
        row, moved, done = first, frozenset[str](), 0
        own = {*_names(c.copies for c in clients), *_own_sets(clients)}
        for phase in plan.steps():
            source = phase.takes_over
            if plan.copies or source is None or source in own or source not in common:
                break
            group, toward = phase.tensors(self._steps.table), common[source]
            toward.need(group, f"the set {source!r}")
            row = row.copy() if done == 0 else row
            for r in self._steps.layout.ranges(group):
                row[r] = toward.flat[0, r].cpu().numpy()
            moved, done = moved.union(group), done + 1
        return _Begun(row, moved, done)

    def _start_row(self, start: Arrays) -> np.ndarray:
        self._known(start)
        row = np.zeros(self._steps.layout.size, np.float32)
        self._steps.layout.write(row, {**self._values, **start}, "the start's tensor")
        return row

    def _known(self, values: Arrays) -> None:
        for name in values:
            if name not in self._values:
                raise TensorMismatchError(f"{name!r} is no device tensor", mend=near(name, self._values))

    def _before(self, client: SimulatedClient, first: np.ndarray) -> dict[str, np.ndarray]:
        row = first.copy()
        self._steps.layout.write(row, client.tensors, "the client's tensor")
        return self._steps.layout.read(row)

    def _outcome(
        self, plan: Plan, lanes: Lanes, lane: int, first: np.ndarray, *, summed: bool = False
    ) -> Outcome:
        steps = int(lanes.done[lane])
        reports = dict(lanes.reports[lane])
        if steps:
            reports.setdefault("loss", float(lanes.losses[lane] / steps))
        failure = lanes.failures[lane]
        if summed:
            return Outcome({}, {}, reports, steps, failure)
        if failure is not None:
            client = lanes.clients[lane]
            copies = {c: dict(v) for c, v in client.copies.items()}
            return Outcome(self._before(client, first), copies, reports, steps, failure)
        layout = self._steps.layout
        kept = {
            name: layout.read(copy.flat[lane].cpu().numpy(), copy.names[lane])
            for name, copy in lanes.copies.items()
            if plan.keep is None or name in plan.keep
        }
        return Outcome(layout.read(lanes.theta[lane].cpu().numpy()), kept, reports, steps)


def _counting(rows: Rows) -> Rows:
    """The rows with a positive weight; the arrays themselves where all have one.

    Raises:
        DataError, NoExamplesError: as ``local.batches.weighted_rows``.
    """
    count, weight = check_rows(rows, "training rows"), rows["weight"]
    if count and weight.min() > 0:
        return rows
    return weighted_rows(rows, "training rows")


def _names(mappings: Iterable[Mapping[str, object]]) -> list[str]:
    return sorted({name for mapping in mappings for name in mapping})


def _own_sets(clients: Sequence[SimulatedClient]) -> dict[str, Arrays]:
    return {name: {} for client in clients for name in client.sets}
