"""The reference for cohorts: one client after the other through ``local.phases``, on a torch session."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from pfl_mobile import ClassificationTask, Head, LoRA, personalize
from pfl_mobile.bundle.manifest import ProgramSpec, TensorSpec
from pfl_mobile.engines.torch import TorchSession
from pfl_mobile.errors import NoExamplesError, NonFiniteError
from pfl_mobile.local.phases import PhaseContext, Work, kept_copies, run_phases
from pfl_mobile.local.session import Programs
from pfl_mobile.programs.trace import trace_programs
from tests.backbones import MLP

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pfl_mobile.modules.model import PersonalizedModel
    from pfl_mobile.plan.schema import Plan
    from pfl_mobile.programs.tasks import Task
    from pfl_mobile.vectorized.cohort import CohortTrainer
    from pfl_mobile.vectorized.lanes import SimulatedClient

BATCH = 4


def classifier() -> tuple[PersonalizedModel, Task, dict[str, torch.Tensor]]:
    """LoRA (shared) and a whole head (personal) in a small network."""
    torch.manual_seed(0)
    batch = {"x": torch.randn(BATCH, 6), "labels": torch.tensor([0, 1, 2, 3]), "weight": torch.ones(BATCH)}
    model = personalize(MLP().eval(), [LoRA("hidden.[02]", rank=2), Head("head")], roles={"lora": "shared"})
    rng = np.random.default_rng(5)  # lora_B starts at zero, which would hide half of the arithmetic
    values = {n: v + torch.from_numpy(rng.normal(0, 0.1, v.shape)).float() for n, v in model.values().items()}
    model.load_values(values)
    return model, ClassificationTask(4), batch


def rows(count: int, seed: int) -> dict[str, np.ndarray]:
    """Examples of one client, weights from 0.5 to 1.5."""
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=(count, 6)).astype(np.float32),
        "labels": rng.integers(0, 4, count),
        "weight": rng.uniform(0.5, 1.5, count).astype(np.float32),
    }


def session(model: PersonalizedModel, task: Task, batch: Mapping[str, torch.Tensor]) -> TorchSession:
    """The programs of a bundle, run by PyTorch."""
    one = {name: batch[name][:1] for name in task.inputs} | {n: torch.tensor([0]) for n in task.predict_extra}
    programs = trace_programs(model, task, batch, one)
    specs = [
        ProgramSpec(name=name, inputs=_specs(program.inputs), outputs=_specs(program.run(program.inputs)))
        for name, program in programs.items()
    ]
    return TorchSession(specs, {name: program.graph for name, program in programs.items()})


def _specs(values: Mapping[str, torch.Tensor]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name=k, shape=tuple(v.shape), dtype=str(v.dtype).removeprefix("torch."))
        for k, v in values.items()
    )


class Alone:
    """Runs plans for one client at a time."""

    def __init__(self, model: PersonalizedModel, task: Task, batch: Mapping[str, torch.Tensor]) -> None:
        self.model = model
        self.programs = Programs(session(model, task, batch), [i.name for i in model.device_tensors()])

    def run(
        self,
        plan: Plan,
        client: SimulatedClient,
        start: Mapping[str, np.ndarray],
        sets: Mapping[str, Mapping[str, np.ndarray]],
    ) -> Work | None:
        """The work afterwards; None where training failed."""
        work = Work({**start, **client.tensors}, {c: dict(v) for c, v in client.copies.items()})
        context = PhaseContext(
            self.programs,
            self.model.device_tensors(),
            {**sets, **client.sets},
            client.seed,
            lambda *_: True,
            client.rows,
        )
        try:
            run_phases(plan, work, context)
        except (NonFiniteError, NoExamplesError):
            return None
        return work


def assert_same(
    trainer: CohortTrainer,
    alone: Alone,
    plan: Plan,
    clients: Sequence[SimulatedClient],
    start: Mapping[str, np.ndarray],
    sets: Mapping[str, Mapping[str, np.ndarray]],
    tolerance: float = 2e-5,
) -> None:
    """Every client of the cohort gets what it gets alone."""
    outcomes = trainer.run(plan, clients, start, sets)
    assert len(outcomes) == len(clients)
    for client, outcome in zip(clients, outcomes, strict=True):
        work = alone.run(plan, client, start, sets)
        if work is None:
            assert outcome.failure
            continue
        assert outcome.failure is None
        assert outcome.steps == work.done
        for name, value in outcome.tensors.items():
            np.testing.assert_allclose(
                value, work.tensors[name], rtol=tolerance, atol=tolerance, err_msg=name
            )
        kept = kept_copies(plan, work)
        assert outcome.copies.keys() == kept.keys()
        for copy, values in kept.items():
            assert outcome.copies[copy].keys() == values.keys()
            for name, value in values.items():
                np.testing.assert_allclose(
                    outcome.copies[copy][name],
                    value,
                    rtol=tolerance,
                    atol=tolerance,
                    err_msg=f"{copy} {name}",
                )
        reports = dict(outcome.reports)
        if work.losses:
            np.testing.assert_allclose(reports.pop("loss"), np.mean(work.losses), rtol=1e-4)
        assert reports.keys() == work.reports.keys()
        for name, number in work.reports.items():
            np.testing.assert_allclose(reports[name], number, rtol=1e-4)


def assert_sum_is_of_the_changes(
    trainer: CohortTrainer,
    plan: Plan,
    clients: Sequence[SimulatedClient],
    start: Mapping[str, np.ndarray],
    sets: Mapping[str, Mapping[str, np.ndarray]],
    weights: Sequence[float],
) -> None:
    """``run_summed`` adds up the changes that ``run`` gives for each client that is well."""
    alone = trainer.run(plan, clients, start, sets)
    outcomes, total = trainer.run_summed(plan, clients, start, sets, weights)
    for one, other in zip(outcomes, alone, strict=True):
        np.testing.assert_equal(
            (one.steps, one.failure, one.reports), (other.steps, other.failure, other.reports)
        )
    assert not any(o.tensors or o.copies for o in outcomes)
    for name, value in total.items():
        expected = np.zeros(value.shape)
        for weight, outcome in zip(weights, alone, strict=True):
            if outcome.failure is None:
                expected += weight * (outcome.tensors[name].astype(float) - sets["global"][name])
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=2e-6 * sum(weights), err_msg=name)
