"""Rows that commands take from datasets and recipes."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

import numpy as np

import pfl_recipes.fraud.study
from pfl_mobile.cli.common import Reporter
from pfl_mobile.cli.rows import rows_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Ran

    Run = Callable[..., Ran]


def test_rows_of_a_dataset_are_those_of_the_recipe_that_serves_it() -> None:
    inputs = [
        types.SimpleNamespace(name=name, dtype=dtype, shape=(16, *shape))
        for name, dtype, shape in (
            ("x", "float32", (15,)),
            ("labels", "int64", ()),
            ("weight", "float32", ()),
        )
    ]
    task = types.SimpleNamespace(vocabulary=2)
    manifest: Any = types.SimpleNamespace(name="fraud", batch_inputs=lambda _program: inputs, task=task)
    for source in ("fraud", "pfl_recipes.fraud.study:study"):
        users = pfl_recipes.fraud.study.study().data
        index = next(i for i in range(len(users)) if users.test(i)["labels"].any())
        rows = rows_of(manifest, source, users.id(index), Reporter())
        assert np.array_equal(rows["weight"], np.where(rows["labels"] == 1, np.float32(20), np.float32(1)))
        newest = users.test(index)["x"]
        assert np.array_equal(rows["x"][-len(newest) :], newest)
