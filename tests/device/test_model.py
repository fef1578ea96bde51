"""The model of a device: values that do not belong to it are refused."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from pfl_mobile.device.model import Model
from pfl_mobile.errors import EngineError, NonFiniteError, ProtocolError
from tests.device.conftest import ID, linear_model

GOOD = {"head.weight": np.zeros((3, 4), np.float32)}


def test_it_is_named_as_the_protocol_does():
    found = linear_model().bundle
    assert (found.name, found.version, found.fingerprint) == (ID.name, ID.version, ID.fingerprint)


def test_values_of_the_model_are_taken():
    model = linear_model()
    model.check_set("global", GOOD)
    model.check_set("fisher", {"head.weight": np.ones(1, np.float32)})  # one value for a whole tensor


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("global", {"tail.weight": np.zeros((3, 4), np.float32)}),
        ("global", {"head.weight": np.zeros((4, 3), np.float32)}),
        ("global", {"head.weight": np.zeros((3, 4), np.float64)}),
        ("global", {"head.weight": np.zeros(1, np.float32)}),
        ("fisher", {"head.weight": np.zeros(2, np.float32)}),
    ],
)
def test_values_of_another_model_are_refused(name, values):
    with pytest.raises(ProtocolError, match=name):
        linear_model().check_set(name, values)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(wrong):
    values = {"head.weight": np.full((3, 4), wrong, np.float32)}
    with pytest.raises(NonFiniteError, match=r"head\.weight"):
        linear_model().check_set("global", values)


def test_no_set_of_the_model_is_larger_than_is_said():
    assert linear_model().most_set_bytes() > 4 * 15 * 4


def test_a_bundle_whose_training_was_never_checked_is_refused():
    bundle = SimpleNamespace(golden=lambda: {"evaluate": None}, manifest=SimpleNamespace(name="m"))
    with pytest.raises(EngineError, match="no golden call of the program 'gradients'"):
        Model.open(bundle, None)
