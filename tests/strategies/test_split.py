"""What FedPer and FedRep have in common: personal layers."""

from __future__ import annotations

import numpy as np
import pytest

from pfl_mobile.errors import ConfigError
from pfl_mobile.strategies import create
from tests.strategies.harness import Federation
from tests.strategies.models import Softmax, classes


@pytest.mark.parametrize("name", ["fedper", "fedrep"])
def test_personal_layers_differ_by_device_and_never_travel(name: str) -> None:
    fed = Federation(create(name), Softmax(personal=True), classes(4)).run(3)
    assert list(fed.collect([0]).layout.shapes) == ["body.weight"]
    np.testing.assert_array_equal(fed.server.values["head.bias"], fed.shipped["head.bias"])
    heads = [fed.personal[c]["head.bias"] for c in range(4)]
    assert all(not np.array_equal(heads[0], other) for other in heads[1:])


@pytest.mark.parametrize("name", ["fedper", "fedrep"])
def test_a_model_without_personal_layers_is_refused(name: str) -> None:
    fed = Federation(create(name), Softmax(), classes(2))
    with pytest.raises(ConfigError, match="'personal'"):
        fed.round()


@pytest.mark.parametrize("name", ["fedper", "fedrep"])
def test_personal_layers_fit_users_who_differ_better_than_one_model(name: str) -> None:
    data = classes(6, spread=3.0)
    split = Federation(create(name), Softmax(personal=True), data).run(10).mean_loss()
    assert split < 0.9 * Federation(create("fedavg"), Softmax(), data).run(10).mean_loss()
