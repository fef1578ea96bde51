"""Forward differences that are continued from order to order equal dp-accounting's own to the last bit."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import numpy as np
import pytest

from pfl_mobile.privacy import differences


@pytest.fixture
def stock() -> Any:
    """dp-accounting's own function; ``use`` changes another copy of its module."""
    accountants = importlib.import_module("dp_accounting.rdp.rdp_privacy_accountant")
    spec = accountants.__spec__
    assert spec is not None
    assert spec.loader is not None
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    return fresh


@pytest.mark.parametrize("sigma", [1e-3, 0.3, 1.7, 250.0, 1e5])
def test_all_orders_are_the_same_to_the_bit(stock: Any, sigma: float) -> None:
    orders = [2, 3, 11, 10, 40, 40, 64, 7]

    def computed() -> list[Any]:
        return [stock._get_forward_diffs(lambda x: x * (x + 1) / (2 * sigma**2), n) for n in orders]

    with np.errstate(all="ignore"):
        want = computed()
        differences.use(stock)
        got = computed()
    for (sizes, signs), (same_sizes, same_signs) in zip(want, got, strict=True):
        np.testing.assert_array_equal(sizes, same_sizes)
        np.testing.assert_array_equal(signs, same_signs)


def test_another_function_begins_anew(stock: Any) -> None:
    wanted = stock._get_forward_diffs(lambda x: 2.0 * x, 5)
    differences.use(stock)
    stock._get_forward_diffs(lambda x: 3.0 * x, 9)
    for want, got in zip(wanted, stock._get_forward_diffs(lambda x: 2.0 * x, 5), strict=True):
        np.testing.assert_array_equal(want, got)
