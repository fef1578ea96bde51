from __future__ import annotations

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pfl_mobile.files.describe import describe, differences
from pfl_mobile.strategies import Local, create


def test_a_description_is_json_and_says_what_decides():
    found = describe({"s": create("ditto"), "l": Local(), "f": describe, "a": np.arange(3), 1: {2.5, None}})
    assert json.loads(json.dumps(found)) == found
    assert found["s"]["kind"] == "Ditto"
    assert found["l"]["optimizer"] == {"kind": "sgd", "lr": 0.1, "weight_decay": 0.0}
    assert found["f"] == "describe"
    assert describe(np.arange(3)) != describe(np.arange(1, 4))
    assert describe(np.float32(0.5)) == 0.5


class Odd:
    """No dataclass: its address must not be in its description, or no checkpoint would fit."""


def test_objects_without_fields_are_described_by_their_class():
    assert describe(Odd()) == describe(Odd()) == "Odd"


trees = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.text(min_size=1, max_size=3), inner, max_size=4),
    max_leaves=8,
)


@given(trees, trees)
def test_differences_are_found_exactly_where_there_are_some(one, other):
    assert not list(differences(one, one))
    if _without_none(one) != _without_none(other):
        assert list(differences(one, other))


def _without_none(tree):
    """A missing setting and one that is None are the same."""
    if not isinstance(tree, dict):
        return tree
    return {k: _without_none(v) for k, v in tree.items() if v is not None}


def test_a_difference_is_named_by_its_path():
    one = {"local": {"optimizer": {"lr": 0.1}}, "seed": 1}
    other = {"local": {"optimizer": {"lr": 0.2}}, "seed": 1, "dropout": 0.5}
    assert list(differences(one, other)) == [("dropout", None, 0.5), ("local.optimizer.lr", 0.1, 0.2)]
