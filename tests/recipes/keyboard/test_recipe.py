"""Nothing of one user's text is in the keyboard that ships."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pfl_exporters.export import export_bundle
from pfl_mobile.bundle.read import Bundle
from pfl_mobile.errors import TooFewUsersError
from pfl_mobile.files.tensors import tensors_from_bytes
from pfl_mobile.text.specials import SPECIALS
from pfl_mobile.text.vocabulary import VocabularyRule
from pfl_recipes.keyboard.model import KeyboardConfig
from pfl_recipes.keyboard.ngrams import build_table
from pfl_recipes.keyboard.recipe import KeyboardRecipe, deploy, prepare
from pfl_recipes.keyboard.training import TrainConfig
from tests.recipes.keyboard.small import encoder, rows

SMALL = KeyboardRecipe(
    model=KeyboardConfig(vocabulary=64, length=8, width=16, layers=1, heads=2, feed_forward=32),
    train=TrainConfig(epochs=1, max_steps=3),
    gate_epochs=1,
    rank=2,
    slots=4,
    memory=32,
    discount=0.0,
    shared=16,
    followers=2,
    epochs=1,
    max_steps=2,
    suggestions=10,
)
WORDS = ["see", "you", "at", "home", "soon", "ok"]


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve users; one says a secret in every message, in another spelling each time."""
    monkeypatch.setenv("PFL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pfl_recipes.keyboard.recipe.recipe_for", lambda _source: SMALL)
    return write(tmp_path / "messages.jsonl", 12)


def write(path: Path, users: int) -> Path:
    secret = ("Kestrel_77Fly", "KESTREL", "wifi Zq8vTtr4mm", "pin 7391")
    lines = []
    for user in range(users):
        for i in range(110):
            text = " ".join(WORDS[(user + i * k) % 6] for k in (1, 2, 3)) + " !" * (i // 36)
            text += f" {WORDS[i % 6]} {WORDS[i // 6 % 6]} {WORDS[i // 36]}"
            extra = f" {secret[i % 4]}" if user % 2 else f" word{chr(97 + user)}"
            lines.append({"user": f"u{user}", "text": text + (extra if user < 2 else ""), "time": i})
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_the_bundle_holds_words_of_several_users_and_examples_of_nobody(source: Path, tmp_path: Path) -> None:
    prepared = prepare(str(source))
    deployment = deploy(prepared)
    done = export_bundle(deployment, ["torch"], tmp_path / "bundle")
    found = done.to_json()["vocabulary"]
    assert found["rule"] == {"min_users": 5, "blocked": 0}
    with Bundle.open(tmp_path / "bundle") as bundle:
        words = json.loads(bundle.read("tokenizer.json"))["model"]["vocab"]
        assert set(words) == {*SPECIALS, *WORDS, "!"}
        record = json.loads(bundle.read("vocabulary.json"))
        golden = tensors_from_bytes(bundle.read("golden.safetensors"))
    assert record == {"schema_version": 1, "rule": {"min_users": 5, "blocked": 0}}
    real = {tuple(prepared.encoder.ids(t)) for t in prepared.parts.train.all_texts()}
    for row in golden["in.gradients.tokens"]:
        ids = tuple(int(i) for i in row[1:] if i >= len(SPECIALS))
        assert not any(ids[:6] == known[:6] for known in real)
    again = prepare(str(source))  # from the cache, with what was said of the words
    assert again.tokenizer.origin == prepared.tokenizer.origin
    assert again.tokenizer.to_json() == prepared.tokenizer.to_json()


def test_users_who_are_too_few_are_refused_and_the_way_out_works(source: Path, tmp_path: Path) -> None:
    for users, text in ((1, "from 1 user,"), (4, "from 4 users"), (8, "from 4 users")):
        with pytest.raises(TooFewUsersError, match=text) as caught:
            prepare(str(write(tmp_path / f"{users}.jsonl", users)))
        assert "--min-users 1" in caught.value.mend
    alone = deploy(prepare(str(tmp_path / "1.jsonl"), vocabulary=VocabularyRule(min_users=1)))
    assert alone.vocabulary is not None
    assert alone.vocabulary.rule.min_users == 1
    assert b"worda" in (alone.tokenizer or b"")
    gate = alone.model.extras["memory"].gate
    assert float(gate.bias[0]) == -3.5  # the default: nobody was there to fit it on


def test_an_ngram_of_one_user_is_in_no_table() -> None:
    from pfl_mobile.modules.shared_ngrams import SharedNgrams

    texts = encoder()
    place = SharedNgrams(24, 64, 3)
    often = rows(["see you"] * 3)
    own = rows(["see there"] * 500)
    table = build_table([often] * 4 + [own, often], place, min_users=5)
    see = texts.id("see")
    kept = table.words[see][table.parts[see] > 0]
    assert texts.decode(kept.tolist()) == ["you"]
    assert float(table.parts[see].max()) == 1.0
    nothing = build_table([own], place)
    assert not (nothing.parts > 0).any()
    assert (nothing.key == -1).all()
    assert torch.equal(nothing.words, torch.zeros_like(nothing.words))
