"""The simulator trains the plan of every strategy as the reference does, device by device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from pfl_mobile import ClassificationTask, Head, LoRA, personalize
from pfl_mobile.plan.optimizers import Sgd
from pfl_mobile.plan.upload import UpdateLayout, change, update_shapes
from pfl_mobile.strategies import Local, RoundContext, Server, Updates, create, entry, names
from pfl_mobile.vectorized.cohort import CohortTrainer
from pfl_mobile.vectorized.lanes import SimulatedClient
from tests.backbones import MLP
from tests.simulation.alone import BATCH, Alone, assert_same, rows

if TYPE_CHECKING:
    from pfl_mobile.modules.model import PersonalizedModel

pytestmark = pytest.mark.filterwarnings("ignore:EWC without fisher")

Trained = tuple["PersonalizedModel", CohortTrainer, Alone]


@pytest.fixture(scope="module")
def trained() -> dict[bool, Trained]:
    """With a personal head, and with everything shared."""
    made = {}
    for split in (True, False):
        torch.manual_seed(0)
        roles = {"lora": "shared"} if split else {"lora": "shared", "head": "shared"}
        model = personalize(MLP().eval(), [LoRA("hidden.[02]", rank=2), Head("head")], roles=roles)
        noise = np.random.default_rng(5)
        model.load_values(
            {
                n: v + torch.from_numpy(noise.normal(0, 0.1, v.shape)).float()
                for n, v in model.values().items()
            }
        )
        batch = {"x": torch.randn(BATCH, 6), "labels": torch.arange(4), "weight": torch.ones(BATCH)}
        parts: Any = (model, ClassificationTask(4), batch)
        made[split] = (model, CohortTrainer(*parts, lanes=4), Alone(*parts))
    return made


@pytest.mark.parametrize("name", names())
def test_a_cohort_equals_each_device_alone(name: str, trained: dict[bool, Trained]) -> None:
    model, trainer, alone = trained[entry(name).split]
    strategy, table = create(name), model.device_tensors()
    shipped = {n: v.numpy().copy() for n, v in model.values().items()}
    server = Server(table, 3, dict(shipped))
    strategy.begin(server)
    local = Local(epochs=2, optimizer=Sgd(lr=0.1))
    kept: list[tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]] = [({}, {})] * 3
    data, groups = [rows(count, k) for k, count in enumerate((9, 3, 6))], ["a", "b", "a"]
    for number in range(2):
        plan = strategy.plan(RoundContext(table, local, number, seed=number))
        sets = {"initial": shipped, "global": server.values, **strategy.sets(server)}
        own = [strategy.sets_for(server, k, groups[k]) for k in range(3)]
        clients = [SimulatedClient(data[k], 7 * number + k, *kept[k], own[k]) for k in range(3)]
        assert_same(trainer, alone, plan, clients, server.values, sets, tolerance=1e-4)
        # On to the next round, with what the reference kept.
        layout = UpdateLayout(update_shapes(plan, table))
        changes, reports = np.zeros((3, layout.size), np.float32), []
        for k, client in enumerate(clients):
            work = alone.run(plan, client, server.values, sets)
            assert work is not None
            before = ({**sets, **own[k]}["global"], client.copies)
            layout.pack(change(plan, table, before, (work.tensors, work.copies)), changes[k])
            personal = {t.name: work.tensors[t.name] for t in table if t.role == "personal"}
            copies = {c: v for c, v in work.copies.items() if plan.keep is None or c in plan.keep}
            kept[k] = (personal, copies)
            reports.append({"loss": float(np.mean(work.losses)), **work.reports})
        counts = np.array([len(r["weight"]) for r in data])
        told = {n: np.array([r[n] for r in reports]) for n in reports[0]}
        strategy.merge(server, Updates(layout, changes, [0, 1, 2], counts, counts, told, groups, 3))
        server.round += 1
