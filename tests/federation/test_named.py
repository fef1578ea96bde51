"""What a bundle says of a study's strategy makes the same strategy again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pfl_exporters.export import export_bundle
from pfl_mobile.bundle import StrategyEntry
from pfl_mobile.federation.named import make_strategy, strategy_entry
from pfl_mobile.files.describe import describe
from pfl_mobile.plan.optimizers import AdamW, Momentum
from pfl_mobile.plan.upload import check_sends
from pfl_mobile.strategies import Local, Strategy, create, names
from pfl_mobile.strategies.ewc import EWC
from pfl_mobile.strategies.fedopt import FedAdam
from pfl_mobile.strategies.fedp3 import FedP3
from pfl_mobile.strategies.fedrep import FedRep
from pfl_mobile.strategies.qffl import QFair
from pfl_mobile.strategies.tilted import Tilted
from tests.server.testbed import federation_config, small
from tests.study.small import study

LOCAL = Local(epochs=3, optimizer=AdamW(lr=0.01), clip=1.0)


def again(strategy: Strategy, local: Local = LOCAL) -> tuple[Strategy, Local]:
    """Through the JSON of a manifest to what a server runs."""
    said = strategy_entry(strategy, local)
    assert said is not None
    return make_strategy(StrategyEntry.model_validate_json(said.model_dump_json(), strict=True), "no plan")


def kept(strategy: Strategy, local: Local) -> Local:
    """The local training that comes back: how long it is, only where no hyper-parameter of the strategy says it."""
    return replace(local, epochs=Local().epochs, steps=None) if strategy.for_steps(1) else local


@pytest.mark.parametrize("name", names())
def test_every_strategy_comes_back_with_its_local_training(name):
    strategy = create(name)
    made, local = again(strategy)
    assert (describe(made), local) == (describe(strategy), kept(strategy, LOCAL))
    assert strategy_entry(strategy, LOCAL).name == name


@pytest.mark.parametrize(
    "strategy",
    [
        create("fedrep", head_epochs=2),
        create("fedadam", lr=0.3),
        create("bounded_group_loss", max_loss=0.4),
        create("qffl", q=2.0, lipschitz=3.0),
        FedRep(head_epochs=7, weighting=Tilted(t=2.0)),
        replace(create("scafflix", p=0.5), weighting=QFair(q=3.0)),
        FedP3(by_group={"old": 0.9}),
        create("lora", share="half", targets=("0", "2")),
    ],
    ids=str,
)
def test_hyper_parameters_and_fairness_come_back(strategy):
    local = Local(steps=4, optimizer=Momentum(lr=0.5))
    made, found = again(strategy, local)
    assert describe(made) == describe(strategy)
    assert found == kept(strategy, local)


@pytest.mark.parametrize(
    "strategy",
    [
        FedRep(optimizer=FedAdam(lr=0.1)),
        FedP3(by_client={3: 0.9}),
        EWC(fisher={"a": np.ones(2, np.float32)}),
        type("Mine", (FedRep,), {})(),
    ],
    ids=["optimizer", "clients", "arrays", "own"],
)
def test_what_no_name_and_numbers_say_is_not_said(strategy):
    assert strategy_entry(strategy, LOCAL) is None


def test_the_bundle_of_a_study_is_served_with_the_strategy_of_the_study(tmp_path):
    one = study("fedrep", personal=["head"], parameters={"head_epochs": 2}, fairness=Tilted(t=2.0))
    with one.run(rounds=1, local_epochs=3) as result:
        deployment = result.deployment()
    assert deployment.plan.upload == ()  # on its own, a device makes its personal model
    export_bundle(deployment, ["torch"], tmp_path / "bundle")
    with small(tmp_path, federation_config()) as f:
        runtime = f.services.runtime
        plan = runtime.plan(f.model(), 0)
    assert runtime.definition.strategy == FedRep(head_epochs=2, weighting=Tilted(t=2.0))
    assert runtime.definition.local == replace(one.local, epochs=3)
    assert plan.upload == ("role:shared",)
    check_sends(plan, runtime.table)
