"""Reptile: a part of the way to what devices trained."""

from __future__ import annotations

import numpy as np

from pfl_mobile.strategies import Equally, create
from pfl_mobile.strategies.fedavg import FedAvg
from tests.strategies.harness import Federation, assert_near, assert_same
from tests.strategies.models import Softmax, classes


def test_reptile_with_epsilon_one_is_fedavg_with_equal_weights() -> None:
    reptile = Federation(create("reptile", epsilon=1.0), Softmax(), classes(4)).run(3)
    fedavg = Federation(FedAvg(weighting=Equally()), Softmax(), classes(4)).run(3)
    assert_same(reptile.server.values, fedavg.server.values)


def test_reptile_goes_a_part_of_the_way() -> None:
    start = {"body.weight": np.ones((3, 4), np.float32), "head.bias": np.zeros(3, np.float32)}
    runs = [
        Federation(create("reptile", epsilon=e), Softmax(), classes(3), start=start).run(1).server.values
        for e in (0.25, 1.0)
    ]
    way = {n: start[n] + 0.25 * (runs[1][n] - start[n]) for n in start}
    assert_near(runs[0], way, 1e-6)
