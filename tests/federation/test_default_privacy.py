"""A study prices what ships: with a budget and no more, `pfl train` and `pfl compare` add the noise of `pfl serve`."""

from __future__ import annotations

from typing import Any

import pytest

from pfl_mobile.cli.merging import study_privacy
from pfl_mobile.privacy import Ledger
from pfl_server.federation.defaults import federation_config
from tests.study.small import study

pytest.importorskip("dp_accounting")


@pytest.mark.parametrize(
    "stated", [{}, {"delta": 1e-5, "clip_norm": 0.5}, {"min_separation": 2}], ids=["budget", "more", "apart"]
)
def test_a_study_has_the_noise_of_a_server(stated: dict[str, Any]) -> None:
    found = study_privacy(study(), 10, None, epsilon=4.0, **stated)
    apart = {name: stated[name] for name in ("min_separation",) if name in stated}
    rest = {name: value for name, value in stated.items() if name not in apart}
    rounds = {"cohort": 4, "minimum": 4, "total": 10} | apart
    served = federation_config({"rounds": rounds}, epsilon=4.0, **rest).privacy
    assert found is not None
    # a study knows its population, which changes no noise of this mechanism
    assert found.replaced(population=None) == served
    for config in (found, served):
        ledger = Ledger(config)
        ledger.record(10)
        assert 3.9 < ledger.epsilon() <= 4.0
