"""Studies as a measure of what privacy costs."""

from __future__ import annotations

import numpy as np
import pytest

from pfl_mobile.errors import PrivacyError
from pfl_mobile.plan.upload import update_shapes
from pfl_mobile.privacy import Gaussian
from pfl_mobile.privacy.cost import accuracy_cost, without_noise
from pfl_mobile.study.privacy_cost import StudyCost, typical_norm
from tests.study.small import personal, study

PLANNED = Gaussian(clip_norm=9.0, noise_multiplier=1.0, cohort=1000, rounds=100)


def test_the_typical_norm_is_the_median_of_the_first_updates() -> None:
    found = typical_norm(study(cohort=8))
    assert 0.01 < found < 10
    assert typical_norm(study(cohort=8)) == found
    with study(cohort=8, robust="norm_bound").run(1) as result:
        moved = result.values
    start = study().model.values()
    assert found > 0.2 * np.sqrt(
        sum(float(((moved[name] - start[name].numpy()) ** 2).sum()) for name in moved)
    )


@pytest.mark.slow
def test_more_noise_costs_more() -> None:
    measure = StudyCost(study(cohort=8), 4)
    loud = PLANNED.model_copy(update={"noise_multiplier": 20_000.0})
    free, silent, little, much = (
        c.accuracy for c in accuracy_cost([None, without_noise(PLANNED), PLANNED, loud], measure.run)
    )
    assert measure.metric == "top1"
    assert silent == pytest.approx(free, abs=15)
    assert little == pytest.approx(silent, abs=3)
    assert much < silent - 10


def test_only_what_is_sent_counts_as_width() -> None:
    shapes = update_shapes(personal().plan(), personal().model.device_tensors())
    assert StudyCost(personal(), 1, 1.0).width == sum(int(np.prod(s)) for s in shapes.values()) == 4 * 8 + 8
    assert StudyCost(personal(), 1, 1.0, width=4000).scale == pytest.approx(10)


def test_a_strategy_that_cannot_be_private_is_refused() -> None:
    with pytest.raises(PrivacyError):
        StudyCost(study("ifca"), 1, 1.0).run(PLANNED)
