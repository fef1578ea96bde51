"""The pictures of a keyboard run show the numbers they are given."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfl_mobile.local.evaluation import UserResult
from pfl_mobile.study import figures
from pfl_recipes.keyboard import plots

MEANS = {
    "top1_before": 10.0,
    "top1_after": 14.5,
    "trigram_top1_after": 12.25,
    "top3_before": 20.0,
    "top3_after": 31.0,
}
ROUNDS = {
    "shipped_top3": 20.0,
    "global_top3": [22.0, 25.0],
    "personalized_top3": [24.0, 28.0],
    "shipped_loss": 5.0,
    "global_loss": [4.5, 4.0],
    "personalized_loss": [4.25, 3.5],
    "epsilon": 2.34567,
    "delta": 1e-5,
    "devices": 7,
    "engine": "onnxruntime",
}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are saved."""
    kept: list[Any] = []

    def keep(figure: Any, path: Path) -> Path:
        kept.append(figure)
        return figures.save(figure, path)

    monkeypatch.setattr(plots, "save", keep)
    return kept


def user(before: float, after: float) -> UserResult:
    unused = dict.fromkeys(field.name for field in fields(UserResult))
    return UserResult(**unused | {"before": {"top1": before}, "after": {"top1": after}})


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_users_are_drawn_by_their_gain_and_losers_in_another_colour(drawn: list[Any], tmp_path: Path) -> None:
    plots.draw(tmp_path, [user(0.25, 0.5), user(0.5, 0.25), user(0.125, 0.25)], MEANS)
    assert is_png(tmp_path / "users.png")
    users, means = drawn[0].axes
    spans = [line for line in users.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 2]
    assert [tuple(line.get_xdata()) for line in spans] == [(50, 25), (12.5, 25), (25, 50)]
    assert [line.get_color() for line in spans] == [plots.OTHER, plots.BEFORE, plots.BEFORE]
    assert users.get_ylabel().startswith("3 users")
    assert [bar.get_height() for bar in means.patches] == [10.0, 14.5, 12.25, 20.0, 31.0]


def test_rounds_begin_with_what_shipped_and_own_models_with_the_first_round(
    drawn: list[Any], tmp_path: Path
) -> None:
    plots.draw_rounds(tmp_path / "rounds.png", ROUNDS)
    assert is_png(tmp_path / "rounds.png")
    recall, loss = drawn[0].axes
    for axes, name in ((recall, "top3"), (loss, "loss")):
        shared, own = axes.lines
        assert list(shared.get_xdata()) == [0, 1, 2]
        assert list(shared.get_ydata()) == [ROUNDS[f"shipped_{name}"], *ROUNDS[f"global_{name}"]]  # type: ignore[misc]
        assert list(own.get_xdata()) == [1, 2]
        assert list(own.get_ydata()) == ROUNDS[f"personalized_{name}"]
        assert np.array_equal(axes.get_xticks(), [0, 1, 2])
    assert drawn[0].get_suptitle() == "7 devices through onnxruntime, epsilon 2.35, delta 1e-05"


def test_a_federation_without_privacy_says_so(drawn: list[Any], tmp_path: Path) -> None:
    plots.draw_rounds(tmp_path / "rounds.png", ROUNDS | {"epsilon": None})
    assert drawn[0].get_suptitle() == "7 devices through onnxruntime, no privacy"
