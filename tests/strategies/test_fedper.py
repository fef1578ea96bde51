"""FedPer: personal layers, trained with the others at once."""

from __future__ import annotations

import numpy as np

from pfl_mobile.strategies import create
from tests.strategies.harness import Federation, full_batch
from tests.strategies.models import LeastSquares, lines, quadratic


def test_fedper_takes_its_step_on_both_parts_at_once() -> None:
    data = lines(1)
    fed = Federation(create("fedper"), LeastSquares(personal=True), data, full_batch(0.1)).run(1)
    _, g = quadratic(data[0])
    np.testing.assert_allclose(fed.server.values["w"], 0.1 * g[:3], rtol=1e-5)
    np.testing.assert_allclose(fed.personal[0]["b"], 0.1 * g[3:], rtol=1e-5)
