"""Epochs and steps of a run, with strategies that count in steps of their own."""

from __future__ import annotations

import numpy as np
import pytest

from pfl_mobile.cli.runs import changed_study
from pfl_mobile.data.populations import ArrayPopulation
from pfl_mobile.errors import ConfigError
from pfl_mobile.random import derive
from pfl_mobile.strategies import RoundContext, create, names
from pfl_mobile.study.compare import compare
from pfl_mobile.study.variants import for_strategy
from tests.study.small import population, study

#: In batches of 8, the training rows of the 8 users of ``small.population``.
BATCHES = [4, 5, 5, 5, 6, 6, 6, 7]


@pytest.mark.parametrize("name", names())
def test_epochs_of_a_run_reach_every_strategy(name):
    one, more = (for_strategy(study(split=["head"]).replace(local_epochs=n), name) for n in (1, 4))
    assert one.plan() != more.plan()


def test_scafflix_takes_epochs_as_mean_steps_between_two_communications():
    with study("scafflix").run(3, local_epochs=2) as result:
        scafflix = result.study.strategy
        assert 1 / scafflix.p == pytest.approx(2 * np.mean(BATCHES))
        drawn = [scafflix.steps(derive(0, r)) for r in range(3)]
        optimum = [5 * n for n in BATCHES]
        for record, steps in zip(result.history, drawn, strict=True):
            assert 4 * (steps + min(optimum)) <= record.steps <= 4 * (steps + max(optimum))
        assert result.baseline().study.local.epochs == 2
    assert study("scafflix").replace(local_steps=8).strategy.p == 1 / 8


def test_scafflix_counts_its_bytes_against_full_synchronization():
    with study("scafflix").run(6, local_steps=4) as result:
        costs, rounds = result.costs(), result.history
        steps = [result.study.strategy.steps(derive(0, r.round)) for r in rounds]
    assert costs["bytes_up"] == 4 * 67 * 4 * 6
    assert costs["bytes_up_full_sync"] == 4 * 67 * 4 * sum(steps)
    with study("scafflix", parameters={"p": 1.0}).run(2) as result:
        costs = result.costs()
        assert costs["bytes_up_full_sync"] == costs["bytes_up"]
    with study("ditto").run(1) as result:
        assert "bytes_up_full_sync" not in result.costs()
    found = compare(study(), ["scafflix"], rounds=2)
    rows = {r["strategy"]: r["bytes_up_full_sync"] for r in found.rows()}
    assert rows["fedavg"] is None
    assert rows["scafflix"] > 0
    assert "% of what full synchronization" in found.remarks()[0]


def test_personal_layers_of_scafflix_are_tuned_for_the_steps_of_an_average_round():
    one = study("scafflix", shared=["body"], personal=["head"]).replace(local_steps=9)
    assert (
        one.strategy.personal_plan(RoundContext(one.model.device_tensors(), one.local)).phases[-1].steps == 9
    )


def test_pfedme_takes_epochs_as_mini_batches():
    with study("pfedme").run(1, local_epochs=2) as result:
        assert result.study.strategy.local_rounds == round(2 * np.mean(BATCHES))
        assert result.costs()["steps"] == 4 * result.study.strategy.local_rounds * 5
    assert study("pfedme").replace(local_steps=3).strategy.local_rounds == 3


@pytest.mark.parametrize(
    ("strategy", "parameters", "name"),
    [
        ("scafflix", {"p": 0.2}, "p"),
        (create("scafflix", p=0.3), {}, "p"),
        ("pfedme", {"local_rounds": 4}, "local_rounds"),
    ],
)
def test_a_length_that_is_told_twice_is_refused(strategy, parameters, name):
    with pytest.raises(ConfigError, match=f"was given {name} and local_epochs") as caught:
        study(strategy, parameters=parameters).run(1, local_epochs=5)
    assert "leave one of them out" in caught.value.mend


def test_lengths_out_of_range_are_refused():
    with pytest.raises(ConfigError, match=r"p is .*not in \[0.001, 1\]"):
        study("scafflix").replace(local_steps=2000)
    for length in ({"local_epochs": 0}, {"local_steps": 2.5}):
        with pytest.raises(ConfigError, match=next(iter(length))):
            study("scafflix").replace(**length)


def test_the_configuration_shows_the_length_that_is_used():
    assert study().replace(local_epochs=3).effective()["local"]["epochs"] == 3
    found = study("scafflix").replace(local_steps=4).effective()
    assert "epochs" not in found["local"]
    assert found["local"]["length"] == "by p of the strategy"
    assert found["parameters"]["p"] == 0.25


def test_the_length_that_a_run_was_told_is_that_of_its_result(tmp_path):
    one = study("scafflix", folder=tmp_path)
    with one.run(1, local_epochs=1) as result:
        p = result.study.strategy.p
    with one.result() as again:
        assert again.study.strategy.p == p != 0.2


def test_users_with_damaged_rows_do_not_count():
    class Damaged(ArrayPopulation):
        size = None

        def train(self, index):
            from pfl_mobile.errors import DataError

            if index == 7:
                raise DataError("damaged", mend="none")
            return super().train(index)

    whole = population()
    found = study("pfedme", Damaged("damaged", whole.ids, whole.parts)).replace(local_epochs=3)
    assert found.strategy.local_rounds == round(3 * np.mean(BATCHES[:7]))


def test_epochs_of_the_command_line_replace_steps_of_the_study():
    made = changed_study("tests.study.small:in_steps", {}, {"local_epochs": 2})
    assert (made.local.epochs, made.local.steps) == (2, None)
