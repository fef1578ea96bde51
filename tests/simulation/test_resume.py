"""A run is resumed only with its own data, model, task, code and files; what differs is named."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from pfl_mobile import ClassificationTask, CustomTask
from pfl_mobile.data.populations import ArrayPopulation, GeneratedPopulation
from pfl_mobile.errors import CheckpointError, OtherSettingsError
from pfl_mobile.files.describe import describe
from pfl_mobile.simulation import used_data
from pfl_mobile.simulation.worker import Setup
from pfl_mobile.strategies import create
from pfl_mobile.strategies.fedavg import FedAvg
from tests.local.fake import linear_rows
from tests.simulation.small import BATCH, Model, OneByOne, Task, rounds, same
from tests.study.small import study

FEDAVG = create("fedavg")


def parts():
    return {f"u{i}": (linear_rows(6 + i, seed=i), linear_rows(3, seed=100 + i)) for i in range(5)}


def arrays(users=None, name="users", groups=None):
    users = users or parts()
    return ArrayPopulation(name, tuple(users), tuple(users.values()), groups or {})


def given(population):
    example = {k: torch.from_numpy(v) for k, v in linear_rows(BATCH).items()}
    return Setup(Model(), Task(), example, population, trainer=OneByOne)  # type: ignore[arg-type]


def run(population, folder, number, resume=False, strategy=FEDAVG, **settings):
    with rounds(
        strategy, given(population), folder=folder, rounds=number, resume=resume, cohort_size=4, **settings
    ) as one:
        one.run()
        return dict(one.server.values)


def _content(users):
    users["u1"][0]["x"][2, 1] += 1e-6


def _test_rows(users):
    users["u1"][1]["x"][0, 0] += 1


def _weight(users):
    users["u1"][0]["weight"][0] = 0.5


def _order(users):
    users["u1"] = ({n: v[::-1] for n, v in users["u1"][0].items()}, users["u1"][1])


def _label(users):
    users["u1"][0]["labels"][0] = (users["u1"][0]["labels"][0] + 1) % 3


def _one_row_more(users):
    users["u1"] = (linear_rows(12, seed=1), users["u1"][1])


def _moved_to_test(users):
    train, test = users["u1"]
    users["u1"] = (
        {n: v[:-1] for n, v in train.items()},
        {n: np.concatenate([train[n][-1:], test[n]]) for n in test},
    )


def _all(users):
    for train, _ in users.values():
        train["x"] *= 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_content, "the user 'u1'"),
        (_test_rows, "the user 'u1'"),
        (_weight, "the user 'u1'"),
        (_order, "the user 'u1'"),
        (_label, "the user 'u1'"),
        (_one_row_more, "the user 'u1'"),
        (_moved_to_test, "the user 'u1'"),
        (_all, "the users 'u0', 'u1', 'u2' and 2 more"),
    ],
)
def test_rows_that_were_changed_are_refused_and_the_user_named(tmp_path, change, named):
    run(arrays(), tmp_path, 2)
    users = parts()
    change(users)
    with pytest.raises(OtherSettingsError) as caught:
        run(arrays(users), tmp_path, 4, resume=True)
    assert named in caught.value.message
    assert "data that the run was started with" in caught.value.mend


def test_the_same_rows_resume_to_the_same_bits_wherever_they_lie_in_memory(tmp_path):
    run(arrays(), tmp_path, 2)
    users = {
        u: tuple({n: np.asfortranarray(v) for n, v in p.items()} for p in pair) for u, pair in parts().items()
    }
    assert same(run(arrays(users), tmp_path, 4, resume=True), run(arrays(), None, 4))


def test_rows_of_another_dtype_are_refused(tmp_path):
    run(arrays(), tmp_path, 1)
    users = {
        u: tuple({n: v.astype(np.float64) if n == "x" else v for n, v in p.items()} for p in pair)
        for u, pair in parts().items()
    }
    with pytest.raises(OtherSettingsError, match="other rows"):
        run(arrays(users), tmp_path, 2, resume=True)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            lambda u: {("new" if n == "u2" else n): v for n, v in u.items()},
            "another user than 'new' at place 2",
        ),
        (lambda u: dict(reversed(u.items())), "users in another order"),
        (lambda u: {n: v for n, v in u.items() if n != "u0"}, "data.users was 5 and is 4"),
        (lambda u: u | {"u9": u["u0"]}, "data.users was 5 and is 6"),
        (lambda u: {n: v for n, v in u.items() if n != "u0"} | {"u9": u["u0"]}, "another user"),
    ],
)
def test_other_users_are_refused(tmp_path, change, named):
    run(arrays(), tmp_path, 1)
    with pytest.raises(OtherSettingsError) as caught:
        run(arrays(change(parts())), tmp_path, 2, resume=True)
    assert named in caught.value.message


def test_other_groups_and_another_name_are_refused(tmp_path):
    one = {"a": [0, 1], "b": [2, 3, 4]}
    run(arrays(groups=one), tmp_path, 1)
    for other in ({"a": [0, 2], "b": [1, 3, 4]}, {"a": [0, 1], "c": [2, 3, 4]}, {}):
        with pytest.raises(OtherSettingsError, match=r"groups\."):
            run(arrays(groups=other), tmp_path, 2, resume=True)
    with pytest.raises(OtherSettingsError, match=r"data\.name"):
        run(arrays(name="others", groups=one), tmp_path, 2, resume=True)


def test_of_very_many_users_one_digest_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(used_data, "_NAMED", 3)
    run(arrays(), tmp_path, 1)
    run(arrays(), tmp_path, 2, resume=True)
    users = parts()
    _content(users)
    with pytest.raises(OtherSettingsError, match="other rows of theirs"):
        run(arrays(users), tmp_path, 3, resume=True)


# -- rows that are made when asked for


@dataclass
class Maker:
    """Rows by index; those of ``changed`` are others."""

    changed: frozenset = frozenset()
    made: list | None = None

    def __call__(self, index):
        if self.made is not None:
            self.made.append(index)
        return linear_rows(6, seed=index + 500 * (index in self.changed)), linear_rows(3, seed=9)


def lazy(count=1_000_000, **settings):
    return GeneratedPopulation("lazy", count, Maker(**settings))


def test_of_a_million_lazy_users_only_those_that_train_are_made(tmp_path):
    made = []
    run(lazy(made=made), tmp_path, 3)
    run(lazy(made=made), tmp_path, 5, resume=True)
    assert len(set(made)) <= 20
    assert len(made) <= 20 + used_data._TRIED


def test_a_lazy_user_that_took_part_and_changed_is_refused_at_once(tmp_path):
    run(lazy(count=6), tmp_path, 3)
    with pytest.raises(OtherSettingsError, match="other rows of the user 'user-2'"):
        run(lazy(count=6, changed=frozenset([2])), tmp_path, 5, resume=True)


def test_a_lazy_user_that_was_not_tried_is_refused_before_its_update_is_merged(tmp_path, monkeypatch):
    monkeypatch.setattr(used_data, "_TRIED", 1)
    full = run(lazy(count=6), None, 8)
    run(lazy(count=6), tmp_path, 4)
    last = max(rounds(FEDAVG, given(lazy(count=6)), cohort_size=4).cohort(3))
    with pytest.raises(OtherSettingsError, match=f"'user-{last}'"):
        run(lazy(count=6, changed=frozenset([last])), tmp_path, 8, resume=True)
    # what had been merged until then is the run's own, so that it can be finished with its own data
    assert same(run(lazy(count=6), tmp_path, 8, resume=True), full)


def test_a_lazy_user_that_never_took_part_may_change(tmp_path):
    run(lazy(), tmp_path, 1)
    run(lazy(changed=frozenset([999_999])), tmp_path, 2, resume=True)


# -- model, task, code


class Scaled(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale, self.layer = scale, nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x) * self.scale


def _loss(factor):
    def loss(output, batch):
        return factor * torch.nn.functional.cross_entropy(output, batch["labels"], reduction="none")

    return loss


class Custom(ClassificationTask):
    def losses(self, output, batch):
        return super().losses(output, batch) * FACTOR


FACTOR = 1.0


@pytest.mark.parametrize(
    ("one", "other", "named"),
    [
        ({"task": CustomTask(_loss(1.0))}, {"task": CustomTask(_loss(2.0))}, "computes something else"),
        ({"model": lambda: Scaled(1.0)}, {"model": lambda: Scaled(2.0)}, "computes something else"),
        ({"model": Scaled(1.0)}, {"model": Scaled(1.0)}, "other initial weights"),
        ({"parameters": {"mu": 0.1}}, {"parameters": {"mu": 0.2}}, "strategy.mu was 0.1 and is 0.2"),
    ],
)
def test_another_model_task_or_parameter_under_the_same_name_is_refused(tmp_path, one, other, named):
    def made(settings):
        settings = {"strategy": "fedprox", "folder": tmp_path} | settings
        base = study(settings.pop("strategy"))
        return base.replace(**settings)

    with made(one).run(rounds=1):
        pass
    with made(one).run(rounds=2, resume=True) as result:
        assert len(result.history) == 2
    with pytest.raises(OtherSettingsError, match=named):
        made(other).run(rounds=3, resume=True)


def test_a_task_that_reads_a_global_is_told_apart(tmp_path, monkeypatch):
    with study(task=Custom(3), folder=tmp_path).run(rounds=1):
        pass
    monkeypatch.setattr(sys.modules[__name__], "FACTOR", 3.0)
    with pytest.raises(OtherSettingsError, match="computes something else"):
        study(task=Custom(3), folder=tmp_path).run(rounds=2, resume=True)


def test_the_digest_of_a_program_is_the_same_in_another_process():
    code = (
        "from tests.study.small import study; from pfl_mobile.simulation.worker import Setup;"
        "s = study(); print(Setup(s.model, s.task, s.batch, s.data).program_digest())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def halved(x):
    return x / 2


def _strategies():
    """Two strategies of the same name for each way to differ."""

    def make(body, helper=None, default=1.0):
        @dataclass(frozen=True)
        class Mine(FedAvg):
            def merge(self, server, updates, by=default):
                body(helper)
                return super().merge(server, updates)

        return Mine()

    return {
        "closure": (make(print), make(repr)),
        "helper": (make(repr, lambda x: x + 1), make(repr, lambda x: x + 2)),
        "default": (make(repr, default=1.0), make(repr, default=2.0)),
    }


@pytest.mark.parametrize("kind", ["closure", "helper", "default"])
def test_a_strategy_of_ones_own_with_other_code_is_refused(tmp_path, kind):
    one, other = _strategies()[kind]
    run(arrays(), tmp_path, 1, strategy=one)
    run(arrays(), tmp_path, 2, resume=True, strategy=_strategies()[kind][0])
    with pytest.raises(OtherSettingsError, match="the code of strategy is another"):
        run(arrays(), tmp_path, 3, resume=True, strategy=other)


def test_functions_are_told_apart_by_what_they_do():
    def exact(value):
        return describe(value, exact=True)

    def choose(shift):
        return lambda number: [number % 5 + shift]

    assert exact(choose(0)) == exact(choose(0)) != exact(choose(1))
    assert exact(functools.partial(halved, 1)) != exact(functools.partial(halved, 2))
    assert exact(torch.ones(2)) != exact(torch.zeros(2))
    assert exact(np.ones(2, np.float32)) != exact(np.ones(2, np.float64))
    assert exact(Maker().__call__) != exact(Maker(frozenset([1])).__call__)
    assert exact(create("ditto")) == describe(create("ditto"))  # ours are named by their version


def test_another_choice_of_cohorts_is_refused(tmp_path):
    run(arrays(), tmp_path, 1, choose=lambda number: [number, 4])
    with pytest.raises(OtherSettingsError, match="the code of choose"):
        run(arrays(), tmp_path, 2, resume=True, choose=lambda number: [number, 3])


# -- files


def test_a_flipped_bit_in_a_state_is_refused(tmp_path):
    strategy = create("ditto")
    full = run(arrays(), None, 6, strategy=strategy)
    run(arrays(), tmp_path, 3, strategy=strategy)
    data = bytearray((tmp_path / "states").read_bytes())
    with rounds(strategy, given(arrays()), folder=tmp_path, cohort_size=4, resume=True) as one:
        place = one.states.mapping()[1][0] * one.states.form.stride * 4
    spoiled = bytearray(data)
    spoiled[place + 1] ^= 4
    (tmp_path / "states").write_bytes(bytes(spoiled))
    with pytest.raises(CheckpointError, match="does not match its digest"):
        run(arrays(), tmp_path, 6, resume=True, strategy=strategy)
    (tmp_path / "states").write_bytes(bytes(data))
    assert same(run(arrays(), tmp_path, 6, resume=True, strategy=strategy), full)


def test_a_digit_changed_in_the_history_is_refused(tmp_path):
    run(arrays(), tmp_path, 2)
    path = tmp_path / "history.jsonl"
    path.write_text(path.read_text().replace('"clients": 4', '"clients": 3', 1))
    with pytest.raises(CheckpointError, match="does not match its digest"):
        run(arrays(), tmp_path, 3, resume=True)


def test_a_checkpoint_without_notes_of_its_data_is_refused(tmp_path):
    from pfl_mobile.files.sealed import seal

    run(arrays(), tmp_path, 1)
    old = seal({"states.devices": np.zeros(0, np.int64)}, '{"schema_version": 1}', form="pfl-rounds")
    (tmp_path / "checkpoint").write_bytes(old)
    with pytest.raises(CheckpointError, match="older version, which did not note the data") as caught:
        run(arrays(), tmp_path, 2, resume=True)
    assert "empty folder" in caught.value.mend
