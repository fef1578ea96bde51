"""What a phase says of itself is what the device's executor does with it; no executor skips a phase."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from typing_extensions import override

from pfl_mobile.errors import ConfigError, DataError, NoExamplesError, PflError, UnknownNameError
from pfl_mobile.local import phases as device
from pfl_mobile.local.phases import PhaseContext, Work, remember, run_phases
from pfl_mobile.plan import phases as module
from pfl_mobile.plan.check import check_plan
from pfl_mobile.plan.phases import Phase, PhaseBase, RepeatPhase, Step, TrainPhase, distinct, unrolled
from pfl_mobile.plan.schema import Plan
from pfl_mobile.plan.words import plan_words
from pfl_mobile.vectorized import phases as simulator
from tests.local.fake import Tensor, Words, sgd

KINDS = get_args(Step)
TABLE = (
    Tensor("a", "shared", (2,)),
    Tensor("b", "personal", (3,)),
    Tensor("slots.active", "personal", (3,), update="assign", module="slots"),
    Tensor("memory.next", "personal", (4,), "int64", "memorize", "memory"),
    Tensor("memory.context", "personal", (4, 2), "int64", "memorize", "memory"),
)
SETS = ("global", "initial", "control", "mask", "fisher")
COPIES = ("own", "other")

#: One phase or more of every kind, with every field that names a set.
PHASES: list[dict[str, Any]] = [
    {"kind": "assign_slots", "min_count": 1},
    {"kind": "memorize"},
    sgd(steps=3),
    sgd(steps=None, epochs=2, batches_per_step="all", trains="fresh"),
    sgd(
        steps=2,
        group=["b"],
        trains="own",
        start_from="other",
        anchor="start",
        mu="fisher",
        control="control",
        mask="mask",
        clip=1.0,
        schedule="linear",
        hold_batch=True,
        evaluate_at={"kind": "mix", "other": "initial", "alpha": 0.5},
    ),
    sgd(steps=None, epochs=3, max_steps=4, evaluate_at={"kind": "lookahead", "step": 0.1}),
    {"kind": "move", "group": ["role:shared"], "toward": "global", "rate": 1.0},
    {"kind": "move", "toward": "own", "rate": 1.0},
    {"kind": "move", "moves": "own", "toward": "theta", "rate": 0.5},
    {"kind": "combine", "makes": "fresh", "terms": [{"of": "own"}, {"of": "global", "times": -0.5}]},
    {"kind": "combine", "makes": "own", "group": ["a"], "terms": [{"of": "theta", "per": "rate"}]},
    {"kind": "measure", "report": "before", "at": "global", "metric": "top1"},
    {"kind": "choose", "group": ["a"], "among": ["global", "own"], "report": "cluster"},
]
NAMES = [f"{number} {phase['kind']}" for number, phase in enumerate(PHASES)]
each_phase = pytest.mark.parametrize(
    "phase", [TypeAdapter(Phase).validate_python(p) for p in PHASES], ids=NAMES
)


def arrays(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {t.name: rng.uniform(1, 2, t.shape).astype(np.float32) for t in TABLE[:2]}


def plan_of(*phases: Any) -> Plan:
    """A plan of these phases, whatever has to be before them and whoever knows them."""
    return Plan.model_validate({"phases": [sgd()]}).model_copy(update={"phases": phases})


class Seen(dict[str, Any]):
    """A dict that knows which of its keys were read."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    @override
    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)


class Engine:
    """Gives made-up gradients and metrics, and knows what it was asked for."""

    batch_size = 2

    def __init__(self, losses: tuple[float, ...]) -> None:
        self.called: set[str] = set()
        self.losses = cycle(losses)
        self.metrics = Seen({"loss": 1.0, "top1": 0.5})

    def gradients(self, rows: Any, tensors: Any) -> dict[str, np.ndarray]:
        self.called.add("gradients")
        grads = {f"grad.{n}": np.ones_like(tensors[n]) for n in ("a", "b")}
        return {"loss_sum": np.ones(1), "weight_sum": np.ones(1)} | grads

    def evaluate(self, rows: Any, tensors: Any) -> Seen:
        self.called.add("evaluate")
        self.metrics["loss"] = next(self.losses)
        return self.metrics


class Run:
    """A device that runs some phases."""

    def __init__(
        self,
        texts: int = 5,
        copies: tuple[str, ...] = COPIES,
        theta: int = 0,
        losses: tuple[float, ...] = (1.0, 2.0),
    ) -> None:
        self.engine = Engine(losses)
        self.texts = ["a new word"] * texts
        tensors = arrays(theta) | {t.name: np.zeros(t.shape, t.dtype) for t in TABLE[2:]}
        self.sets = {name: arrays(10 + k) for k, name in enumerate(SETS)}
        self.work = Work(tensors, {name: arrays(20 + k) for k, name in enumerate(copies)}, rate=0.5)
        self.context = PhaseContext(
            self.engine,  # type: ignore[arg-type]
            TABLE,
            self.sets,
            seed=1,
            after_step=lambda *_: True,
            rows=Words().encode(self.texts),
            encoder=Words(),  # type: ignore[arg-type]
            texts=self.texts,
        )

    def of(self, *phases: Any) -> Run:
        assert run_phases(plan_of(*phases), self.work, self.context)
        return self

    def written(self, before: Run) -> dict[str, set[str]]:
        """Set -> its tensors that are not what they were."""
        now, then = ({"theta": r.work.tensors, **r.work.copies} for r in (self, before))
        changed = {
            name: {n for n, v in values.items() if not np.array_equal(v, then.get(name, {}).get(n))}
            for name, values in now.items()
        }
        return {name: names for name, names in changed.items() if names}


def test_there_is_an_example_of_every_kind() -> None:
    kinds = {kind.model_fields["kind"].default for kind in (*KINDS, RepeatPhase)}
    assert {phase["kind"] for phase in PHASES} == kinds - {"repeat"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_answers_every_question(kind: type[PhaseBase]) -> None:
    assert issubclass(kind, PhaseBase)
    assert not inspect.isabstract(kind)


def test_every_phase_of_the_module_is_in_a_plan() -> None:
    found = {c for c in vars(module).values() if inspect.isclass(c) and issubclass(c, PhaseBase)}
    assert {c for c in found if not inspect.isabstract(c)} == set(KINDS)


@each_phase
def test_it_reads_the_sets_that_it_says(phase: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    read = set()

    def named(name: str, *rest: Any) -> Any:
        read.add(name)
        return found(name, *rest)

    found = device.named_set
    monkeypatch.setattr(device, "named_set", named)
    Run().of(phase)
    own = {phase.writes} if "gradients" in phase.programs else set()  # what trains goes on from where it is
    assert read == {*phase.reads, *phase.step_reads, *own}


@each_phase
def test_it_writes_what_it_says(phase: Step) -> None:
    ran, tensors = Run().of(phase), set(phase.tensors(TABLE))
    assert ran.written(Run()) == ({} if phase.writes is None else {phase.writes: tensors})
    assert bool(tensors) is (phase.writes is not None)
    assert ran.work.copies.keys() == {*COPIES, phase.makes_copy} - {None}


@each_phase
def test_only_what_it_changes_can_be_sent(phase: Step) -> None:
    trained = {t.name for t in TABLE if t.update == "gradient"}
    written = Run().of(phase).written(Run())
    changed = {name for name, names in written.items() if names & trained}
    if phase.kind == "move" and phase.toward == "global":
        assert phase.changes is None
    else:
        assert changed == {phase.changes} - {None}


@each_phase
def test_it_takes_over_a_set_only_where_it_says(phase: Step) -> None:
    ran = [Run().of(phase), Run(theta=1, losses=(2.0, 1.0)).of(phase)]
    group = [name for name in arrays(0) if name in phase.tensors(TABLE)]
    equal = [np.array_equal(*(run.work.tensors[name] for run in ran)) for name in group]
    if phase.takes_over is None:
        assert not any(equal)
    else:
        assert equal
        assert all(equal)
        source = {**ran[0].sets, **ran[0].work.copies}[phase.takes_over]
        assert all(np.array_equal(ran[0].work.tensors[name], source[name]) for name in group)


@each_phase
def test_it_reports_calls_and_asks_for_what_it_says(phase: Step) -> None:
    ran = Run().of(phase)
    assert set(ran.work.reports) == {phase.reported} - {None}
    assert ran.engine.called == set(phase.programs)
    assert ran.engine.metrics.read == set(phase.metrics)


@each_phase
@pytest.mark.parametrize("rows", [1, 2, 5, 9])
def test_it_takes_the_optimizer_steps_that_it_says(phase: Step, rows: int) -> None:
    ran = Run(texts=rows).of(phase)
    assert ran.work.done == phase.optimizer_steps(rows, Engine.batch_size)
    assert ran.context.total_steps(plan_of(phase)) == ran.work.done


def test_without_rows_an_epoch_has_no_step() -> None:
    for raw in PHASES:
        phase = TypeAdapter(Phase).validate_python(raw)
        assert isinstance(phase, TrainPhase) is (phase.optimizer_steps(4, 2) > 0)
        if raw.get("epochs"):
            assert phase.optimizer_steps(0, 2) == 0


@each_phase
def test_it_takes_of_the_examples_what_it_says(phase: Step) -> None:
    refused = {
        "rows": (NoExamplesError, {"rows": Words().encode([])}),
        "texts": (ConfigError, {"texts": None}),
        "tokens": (DataError, {"rows": {"weight": np.ones(2, np.float32)}}),
    }
    for needs, (error, changes) in refused.items():
        run = Run()
        for name, value in changes.items():
            setattr(run.context, name, value)
        if needs == phase.examples:
            with pytest.raises(error):
                run.of(phase)
        elif phase.examples != "rows" or needs == "texts":
            run.of(phase)


@each_phase
def test_it_has_to_do_with_learning_rates_where_it_says(phase: Step) -> None:
    runs = [Run(), Run()]
    for run, rate in zip(runs, (0.3, 7.0), strict=True):
        run.work.rate = rate
        assert (run.of(phase).work.rate != rate) is phase.leaves_rate
    assert bool(runs[0].written(runs[1])) is phase.needs_rate


@each_phase
def test_only_what_remembers_runs_again(phase: Step) -> None:
    run = Run()
    remember(plan_of(phase), run.work, run.context)
    memory = {t.name for t in TABLE if t.update == "memorize"}
    assert phase.remembers is not memory.isdisjoint(phase.tensors(TABLE))
    assert bool(run.written(Run())) is phase.remembers


@each_phase
def test_it_fits_a_model_that_has_its_tensors(phase: Step) -> None:
    phase.check(TABLE)
    if phase.writes is not None:
        with pytest.raises(UnknownNameError):
            phase.check([])


def test_a_module_that_is_no_memory_is_refused() -> None:
    phase = TypeAdapter(Phase).validate_python({"kind": "memorize"})
    with pytest.raises(ConfigError, match="'next' and 'context'"):
        phase.check(TABLE[:-1])


@each_phase
def test_it_reads_in_words(phase: Step) -> None:
    assert phase.words()
    assert all(line.strip() == line and line for line in phase.words())
    lines = plan_words(plan_of(RepeatPhase(times=3, phases=(phase,))))
    start = lines.index("3 times:")
    assert lines[start + 1 : start + 1 + len(phase.words())] == [f"  {line}" for line in phase.words()]


def test_every_field_that_is_set_shows_in_the_words() -> None:
    plain = TypeAdapter(Phase).validate_python(sgd(steps=2))
    changes: dict[str, Any] = {
        "group": ("a",),
        "steps": 3,
        "batches_per_step": 2,
        "hold_batch": True,
        "trains": "own",
        "start_from": "own",
        "evaluate_at": module.Lookahead(step=0.1),
        "anchor": "global",
        "control": "control",
        "mask": "mask",
        "clip": 1.0,
        "schedule": "linear",
    }
    for name, value in changes.items():
        assert plain.model_copy(update={name: value}).words() != plain.words(), name


# -- whole plans ---------------------------------------------------------------------------------------------

ONE = st.sampled_from(PHASES)
SOME = st.recursive(
    st.lists(ONE, min_size=1, max_size=4),
    lambda inner: st.builds(
        lambda times, phases, rest: [{"kind": "repeat", "times": times, "phases": phases}, *rest],
        st.integers(1, 3),
        inner,
        st.lists(ONE, max_size=2),
    ),
    max_leaves=3,
)


@given(SOME, st.sampled_from([(), COPIES]))
def test_a_plan_that_passes_its_check_runs_and_says_what_comes_of_it(
    raw: list[dict[str, Any]], copies: tuple[str, ...]
) -> None:
    run = Run(copies=copies)
    try:
        plan = Plan.model_validate({"phases": raw})
        check_plan(plan, TABLE, run.sets, copies)
    except (ValidationError, PflError):
        return
    assert run_phases(plan, run.work, run.context)
    assert run.work.copies.keys() == plan.made() | set(copies)
    assert sorted(run.work.reports) == list(plan.reports)


@given(SOME)
def test_each_phase_once_are_the_phases_that_run(raw: list[dict[str, Any]]) -> None:
    phases = [TypeAdapter(Phase).validate_python(phase) for phase in raw]
    assert distinct(phases) == list(dict.fromkeys(unrolled(phases)))
    assert module.unrolled_count(phases) == len(unrolled(phases))


# -- the executors -------------------------------------------------------------------------------------------


class Unknown(module.PhaseBase):
    """A phase that no executor knows."""

    kind: str = "unknown"

    @property
    @override
    def reads(self) -> tuple[str, ...]:
        return ()

    @property
    @override
    def writes(self) -> None:
        return None

    @property
    @override
    def examples(self) -> None:
        return None

    @override
    def tensors(self, table: Any) -> list[str]:
        return []

    @override
    def words(self) -> list[str]:
        return ["do what nobody knows"]


def simulate(phase: Any) -> None:
    lanes = SimpleNamespace(start=None, reports=[{}])
    simulator.run_plan(plan_of(phase), lanes, SimpleNamespace(), [1])  # type: ignore[arg-type]


@pytest.mark.parametrize("executor", [lambda phase: Run().of(phase), simulate], ids=["device", "simulator"])
def test_an_executor_stops_at_a_phase_that_it_does_not_know(executor: Callable[[Any], object]) -> None:
    with pytest.raises(AssertionError, match="unknown"):
        executor(Unknown())


@each_phase
def test_the_simulator_runs_or_refuses_it(phase: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    for name in ("train", "move", "combine", "measure", "choose"):
        method = f"_{name}"
        monkeypatch.setattr(
            simulator._Runner, method, lambda self, *_, name=name: done.append(name) or np.zeros(1)
        )
    if phase.examples in ("texts", "tokens"):
        with pytest.raises(ConfigError, match=phase.kind):
            simulate(phase)
    else:
        simulate(phase)
        assert done == [phase.kind]


def test_a_phase_that_leaves_a_question_open_cannot_be_made() -> None:
    class Silent(PhaseBase):
        kind: str = "silent"

    with pytest.raises(TypeError, match="abstract"):
        Silent()  # type: ignore[abstract]


def test_only_the_executors_act_on_a_kind() -> None:
    root = Path(module.__file__).parents[2]
    kinds = {kind.__name__ for kind in (*KINDS, RepeatPhase)}
    switching = set()
    for folder in ("pfl_mobile", "exporters", "recipes", "server"):
        for path in (root / folder).rglob("*.py"):
            text = path.read_text()
            if "Phase" in text and any(_switches(node, kinds) for node in ast.walk(ast.parse(text))):
                switching.add(path.relative_to(root).as_posix())
    # plan/phases.py looks into repeats, and nowhere else is one
    executors = {"pfl_mobile/local/phases.py", "pfl_mobile/vectorized/phases.py"}
    assert switching == {"pfl_mobile/plan/phases.py", *executors}


def _switches(node: ast.AST, kinds: set[str]) -> bool:
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
        node = node.args[1]
    elif isinstance(node, ast.MatchClass):
        node = node.cls
    else:
        return False
    return any(getattr(n, "id", getattr(n, "attr", "")) in kinds for n in ast.walk(node))
