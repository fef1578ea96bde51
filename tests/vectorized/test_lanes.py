"""The state of clients side by side: sets by name, copies, sums of changes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pfl_mobile.errors import TensorMismatchError, UnknownNameError
from pfl_mobile.vectorized.lanes import FlatSet, Flattened, Lanes, SimulatedClient
from pfl_mobile.vectorized.layout import Layout

LAYOUT = Layout({"a": (2,), "b": (3,)})
ALL = frozenset(("a", "b"))


def client(**more: Any) -> SimulatedClient:
    return SimulatedClient({}, 0, **more)


def lanes(*clients: SimulatedClient, common: dict[str, FlatSet] | None = None) -> Lanes:
    rows = torch.zeros(len(clients), LAYOUT.size)
    for k in range(len(clients)):
        rows[k] = k + 1
    return Lanes(clients, SimpleNamespace(), LAYOUT, rows, {}, common or {})  # type: ignore[arg-type]


def flat(value: float) -> FlatSet:
    return FlatSet(torch.full((1, LAYOUT.size), value), [ALL])


def arrays(value: float) -> dict[str, np.ndarray]:
    return {"a": np.full(2, value, np.float32), "b": np.full(3, value, np.float32)}


def test_the_sum_of_changes_is_weighted_and_leaves_failed_lanes_out() -> None:
    found = lanes(client(), client(), client())
    found.rows[1] = float("nan")
    total = torch.zeros(LAYOUT.size)
    found.add_changes(total, torch.full((LAYOUT.size,), 0.5), [2.0, 0.0, 1.0])
    for place in LAYOUT.places.values():
        assert total[place].tolist() == [2 * 0.5 + 2.5] * (place.stop - place.start)


def test_sets_are_found_by_name() -> None:
    found = lanes(client(), client(), common={"global": flat(7)})
    assert found.named("theta").flat is found.rows
    assert not found.named("zero").flat.any()
    assert found.named("global").flat[0, 0] == 7
    with pytest.raises(UnknownNameError) as caught:
        found.named("globl")
    assert "'global'" in caught.value.mend


def test_a_clients_own_set_takes_the_place_of_the_common_one() -> None:
    found = lanes(client(sets={"anchor": arrays(3)}), client(), common={"anchor": flat(7)})
    own = found.named("anchor")
    assert own.flat[:, 0].tolist() == [3, 7]
    assert own.names == [ALL, ALL]


def test_a_set_that_only_some_have_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="only some clients have"):
        lanes(client(sets={"anchor": arrays(3)}), client()).named("anchor")


def test_a_missing_tensor_of_a_set_is_named() -> None:
    found = lanes(client(sets={"anchor": {"a": np.ones(2, np.float32)}})).named("anchor")
    found.need(["a"], "the anchor")
    with pytest.raises(TensorMismatchError, match="the anchor has no tensor 'b'"):
        found.need(["a", "b"], "the anchor")


def test_copies_come_along_and_are_made_where_they_are_written() -> None:
    found = lanes(client(copies={"c": arrays(5)}), client())
    found.load_copies()
    assert found.copies["c"].names == [ALL, frozenset()]
    kept = found.writable("c", ["a"], flat(9), keep=True)
    assert kept[:, 0].tolist() == [5, 9], "what a lane has stays"
    assert found.copies["c"].names == [ALL, frozenset(("a",))]
    fresh = found.writable("c", ["a"], flat(8), keep=False)
    assert fresh[:, 0].tolist() == [8, 8]
    assert found.writable("new", ["b"], flat(4), keep=True)[:, LAYOUT.places["b"].start].tolist() == [4, 4]


def test_theta_is_written_in_place() -> None:
    found = lanes(client(), client())
    assert found.writable("theta", ["a"], flat(9), keep=True)[:, 0].tolist() == [1, 2]
    assert found.writable("theta", ["a"], flat(9), keep=False) is found.rows
    assert found.rows[:, 0].tolist() == [9, 9]
    assert found.rows[:, LAYOUT.places["b"].start].tolist() == [1, 2]


def test_the_first_failure_of_a_lane_is_kept() -> None:
    found = lanes(client(), client())
    found.fail([1], "first")
    found.fail([0, 1], "second")
    assert found.failures == ["second", "first"]


def test_lanes_that_are_not_finite_are_found_in_a_group() -> None:
    found = lanes(client(), client())
    found.rows[1, LAYOUT.places["b"].start] = float("inf")
    assert found.non_finite(found.rows, {}, ["a", "b"]).tolist() == [False, True]
    assert found.non_finite(found.rows, {}, ["a"]).tolist() == [False, False]


def test_common_sets_are_made_flat_once_and_when_read() -> None:
    made = []

    def flatten(values: object, name: str) -> FlatSet:
        made.append(name)
        return flat(1)

    sets = Flattened({"one": {}, "two": {}}, flatten)
    assert ("one" in sets, "three" in sets, len(sets), list(sets)) == (True, False, 2, ["one", "two"])
    assert made == []
    assert sets["one"] is sets["one"]
    assert made == ["one"]
