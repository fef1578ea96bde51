"""The backbone of the keyboard."""

from __future__ import annotations

import pytest
import torch

from pfl_mobile.errors import ConfigError
from pfl_recipes.keyboard.model import Keyboard, KeyboardConfig
from tests.recipes.keyboard.small import SIZES


def test_default_backbone_has_the_size_of_a_phone_keyboard() -> None:
    assert 1_000_000 <= sum(p.numel() for p in Keyboard().parameters()) <= 4_000_000


def test_logits_do_not_depend_on_later_tokens() -> None:
    torch.manual_seed(0)
    backbone = Keyboard(SIZES).eval()
    tokens = torch.randint(4, 24, (3, 8))
    changed = tokens.clone()
    changed[:, 5:] = 7
    torch.testing.assert_close(backbone(tokens)[:, :5], backbone(changed)[:, :5])
    assert backbone(tokens[:, :3]).shape == (3, 3, 24)


def test_sizes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ConfigError, match="5 heads"):
        KeyboardConfig(heads=5)
