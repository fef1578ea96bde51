"""A run is resumed only with the rows that it was made with; whose differ is named."""

from __future__ import annotations

import numpy as np
import pytest

from pfl_mobile.data.populations import GeneratedPopulation
from pfl_mobile.errors import OtherSettingsError
from pfl_mobile.simulation import used_data
from tests.local.fake import linear_rows
from tests.simulation.resuming import FEDAVG, Maker, arrays, given, parts, run
from tests.simulation.small import rounds, same


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


def test_of_very_many_users_one_digest_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(used_data, "_NAMED", 3)
    run(arrays(), tmp_path, 1)
    run(arrays(), tmp_path, 2, resume=True)
    users = parts()
    _content(users)
    with pytest.raises(OtherSettingsError, match="other rows of theirs"):
        run(arrays(users), tmp_path, 3, resume=True)


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
