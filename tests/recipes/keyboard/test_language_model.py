"""A language model in the keyboard's place: a small random one through the whole run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pfl_mobile.text.rules import NEWEST
from pfl_recipes.keyboard import language_model
from pfl_recipes.keyboard.baselines import pieces
from pfl_recipes.keyboard.language_model import LanguageModelRun, measure, run_all, written
from tests.exporters.test_hugging_face import llama
from tests.recipes.keyboard.test_recipe import SMALL, write


@pytest.mark.parametrize(
    "text", ["See you at 5... don't WAIT", " hi ,  you ", "\U0001f44d\U0001f3fd ok", "dogs' tail", ""]
)
def test_what_stands_before_each_piece_is_the_text_as_it_was_typed(text: str) -> None:
    before = written(text)
    (own,) = pieces([text])
    assert len(before) == len(own) + 1
    assert [NEWEST.cut(b) for b in before] == [own[:i] for i in range(len(own) + 1)]
    assert all(text.startswith(b) and b == b.rstrip() for b in before)


def test_a_small_model_beside_its_peers_and_a_run_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PFL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pfl_recipes.keyboard.recipe.recipe_for", lambda _source: SMALL)
    source = write(tmp_path / "messages.jsonl", 12)
    run = LanguageModelRun(
        str(llama(tmp_path / "model")), str(source), users=2, messages=2, engine="torch", start=25, newest=50,
        calls=1, batch=2, length=12,
    )  # fmt: skip
    found = run_all(run, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "language_model.json").read_text()) == json.loads(json.dumps(found))
    model, keyboard, trigram = (found["rows"][n] for n in ("language model, float32", "keyboard", "trigram"))
    for row in (model, keyboard, trigram):
        assert row["users"] == 2
        assert sum(own["before"]["targets"] for own in row["per_user"].values()) == found["pieces"] > 10
        assert all(
            own["after"]["keys_with"] <= own["after"]["keys_without"] for own in row["per_user"].values()
        )
    assert model["steps"] >= 22  # 50 messages, 5 of them for the guard, in batches of 2
    assert model["adopted"] in (0, 1, 2)
    start = json.loads((tmp_path / "out" / run.start_name).with_suffix(".json").read_text())
    assert start["steps"] >= 10
    assert start["after"]["loss"] < start["before"]["loss"]

    def never(*_: object) -> None:
        raise AssertionError("it was there already")

    monkeypatch.setattr(language_model, "_one", never)
    monkeypatch.setattr(language_model, "_evaluator", never)
    rows = language_model.compared(measure(run, _users(run), tmp_path / "out"), "again").to_json()
    assert rows["per_user"] == model["per_user"]


def _users(run: LanguageModelRun) -> language_model.data.Split:
    everybody = language_model.data.split(language_model.data.load(run.source))
    return language_model.data.Split(everybody.train, dict(list(everybody.test.items())[: run.users]))
