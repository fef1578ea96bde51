"""Interpolation between the model of all and the fine-tuned one."""

from __future__ import annotations

from pfl_mobile.strategies import create
from tests.strategies.harness import Federation, assert_near, assert_same
from tests.strategies.models import Softmax, classes


def test_mix_one_of_interpolation_is_fine_tuning() -> None:
    data = classes(3)
    fed = Federation(create("interpolation", alpha=1.0, finetune_epochs=2), Softmax(), data).run(3)
    tuned = Federation(create("fedavg_finetune", finetune_epochs=2), Softmax(), data).run(3)
    half = Federation(create("interpolation", alpha=0.5, finetune_epochs=2), Softmax(), data).run(3)
    assert_same(fed.served(1), tuned.served(1))
    middle = {n: (v + fed.server.values[n]) / 2 for n, v in fed.served(1).items()}
    assert_near(half.served(1), middle, 1e-6)
