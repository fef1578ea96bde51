"""The same local training through every engine ends at the same tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pfl_mobile.bundle import Bundle
from pfl_mobile.engines import open_session
from pfl_mobile.engines.registry import comparing
from pfl_mobile.local.evaluation import text_encoder
from pfl_mobile.local.trainer import LocalTrainer
from pfl_mobile.plan.optimizers import AdamW
from pfl_mobile.plan.phases import TrainPhase
from pfl_mobile.plan.schema import Plan
from tests import tiny

STEPS = 50


@pytest.mark.slow
def test_fifty_steps_give_the_same_tensors_on_every_engine(tiny_bundle_android: Path) -> None:
    plan = Plan(
        phases=(TrainPhase(group=("*lora*",), steps=STEPS, optimizer=AdamW(lr=0.01), clip=1.0),), holdout=0.2
    )
    trained = {}
    with Bundle.open(tiny_bundle_android) as bundle:
        encoder = text_encoder(bundle)
        assert encoder is not None
        rows = encoder.encode(tiny.texts("cleo", 24), drop_unknown=True)
        for engine in ("torch", *comparing(bundle.manifest.engines)):
            with open_session(bundle, engine, threads=1) as session:
                trainer = LocalTrainer(session, plan, bundle.manifest.tensors, bundle.values())
                report = trainer.personalize(rows, {k: v[-6:] for k, v in rows.items()})
                assert report.steps == STEPS
                assert report.state is not None, report
                trained[engine] = report.state.tensors
    for engine in trained.keys() - {"torch"}:
        for name, want in trained["torch"].items():
            if "lora" in name:
                np.testing.assert_allclose(trained[engine][name], want, rtol=2e-4, atol=2e-5, err_msg=name)
