"""What APFL and interpolation have in common: a mix of 0 is FedAvg."""

from __future__ import annotations

import pytest

from pfl_mobile.strategies import create
from tests.strategies.harness import Federation, assert_same
from tests.strategies.models import Softmax, classes


@pytest.mark.parametrize("name", ["apfl", "interpolation"])
def test_mix_zero_serves_the_global_model_of_fedavg(name: str) -> None:
    fed = Federation(create(name, alpha=0.0), Softmax(), classes(4)).run(3)
    fedavg = Federation(create("fedavg"), Softmax(), classes(4)).run(3)
    assert_same(fed.server.values, fedavg.server.values)
    assert_same(fed.served(2), fedavg.server.values)
