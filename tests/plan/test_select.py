from __future__ import annotations

import pytest

from pfl_mobile.errors import ConfigError, UnknownNameError
from pfl_mobile.plan.select import matches, select, uploaded
from tests.local.fake import Tensor

TABLE = [
    Tensor("blocks.0.lora_A", "shared", (1,), module="lora"),
    Tensor("head.w", "personal", (1,), module="head"),
    Tensor("slots.active", "personal", (1,), update="assign", module="slots"),
]


def test_group_patterns():
    assert select(["*"], TABLE) == ["blocks.0.lora_A", "head.w"]
    assert select(["blocks.?.*"], TABLE) == select(["role:shared"], TABLE) == ["blocks.0.lora_A"]
    assert select(["module:head", "role:personal"], TABLE) == ["head.w"]
    assert not matches("head.w", Tensor("headXw", "shared", (1,)))
    with pytest.raises(UnknownNameError, match="lora_B"):
        select(["*lora_B"], TABLE)
    with pytest.raises(ConfigError, match="no gradient"):
        select(["module:slots"], TABLE)


def test_personal_tensors_are_never_uploaded():
    assert uploaded(["*"], TABLE) == ["blocks.0.lora_A"]
    assert uploaded([], TABLE) == []
    with pytest.raises(ConfigError, match="never leave"):
        uploaded(["role:personal"], TABLE)
