"""A finished study becomes a bundle, and a device trains with it as the simulator does."""

from __future__ import annotations

import numpy as np
import pytest

from pfl_exporters.export import export_bundle
from pfl_exporters.targets import TARGETS
from pfl_mobile import engines
from pfl_mobile.bundle import Bundle
from pfl_mobile.engines import open_session
from pfl_mobile.local.trainer import LocalTrainer
from pfl_mobile.plan.schema import Guard, Plan
from pfl_mobile.vectorized.cohort import CohortTrainer
from pfl_mobile.vectorized.lanes import SimulatedClient
from tests.study.small import study

pytestmark = pytest.mark.slow

#: Of the targets whose files a phone runs.
ENGINES = {t.name: t.engine for t in TARGETS.all().values() if not engines.ENGINES.find(t.engine).only_named}


@pytest.fixture(scope="module", params=ENGINES)
def shipped(request, tmp_path_factory):
    """The result of a study, its deployment as a bundle, and the engine of that bundle."""
    place = tmp_path_factory.mktemp("shipped") / "bundle"
    with study("ditto", personal=["head"]).run(rounds=3) as result:
        deployment = result.deployment("small")
        export_bundle(deployment, [request.param], place)
        yield result, place, ENGINES[request.param]


@pytest.mark.parametrize("user", [0, 5])
def test_a_device_ends_with_the_tensors_of_the_simulator(shipped, user):
    result, place, engine = shipped
    train, test = result.study.data.train(user), result.study.data.test(user)
    with Bundle.open(place) as bundle, open_session(bundle, engine) as session:
        plan = Plan.load(bundle.plan_json()).model_copy(update={"guard": Guard(tolerance=1e9), "seed": 77})
        start = bundle.values()
        report = LocalTrainer(session, plan, bundle.manifest.tensors, start).personalize(train, test)
    simulator = CohortTrainer(result.study.model, result.study.task, result.study.batch, lanes=2)
    both = [SimulatedClient(train, 77), SimulatedClient(result.study.data.train(1), 5)]
    outcome = simulator.run(plan, both, start, {"initial": start, "global": start})[0]
    assert report.adopted
    assert report.steps == outcome.steps > 0
    assert outcome.failure is None
    for name, value in outcome.tensors.items():
        np.testing.assert_allclose(report.state.tensors[name], value, rtol=1e-4, atol=1e-5)
    assert report.state.copies.keys() == outcome.copies.keys() == {"personal"}
    for name, value in outcome.copies["personal"].items():
        np.testing.assert_allclose(report.state.copies["personal"][name], value, rtol=1e-4, atol=1e-5)
    moved = [np.abs(outcome.copies["personal"][n] - start[n]).max() for n in outcome.copies["personal"]]
    assert max(moved) > 1e-3
