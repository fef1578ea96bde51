"""One user before and after, many users together, and the check of an engine."""

from __future__ import annotations

import dataclasses
import json
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from pfl_mobile.bundle import Bundle, manifest
from pfl_mobile.engines import open_session
from pfl_mobile.engines.compare import golden_check, output_errors, relative_error
from pfl_mobile.errors import ConfigError, DataError, EngineMismatchError, NoExamplesError, StateError
from pfl_mobile.local.evaluation import (
    Evaluator,
    UserResult,
    model_id,
    personal_store,
    personalize_user,
    summarize,
    text_encoder,
)
from pfl_mobile.local.state import PersonalState, PersonalStateStore
from pfl_mobile.text.encoder import TextEncoder, WordTokenizer
from pfl_mobile.text.rules import VERSION_1
from pfl_mobile.text.specials import UNK
from tests import tiny

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from pfl_mobile.engines import EngineSession

#: Examples that nothing was done with: none.
UNUSED = {"older": 0, "no_words": 0, "unknown_words": 0}


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Iterator[Bundle]:
    with Bundle.open(tiny_bundle) as opened:
        yield opened


@pytest.fixture(scope="module")
def session(bundle: Bundle) -> Iterator[EngineSession]:
    with open_session(bundle, "onnxruntime", threads=1) as opened:
        yield opened


class Wrong:
    """A session whose gradients are off."""

    name = "wrong"

    def __init__(self, session: EngineSession, name: str, factor: float) -> None:
        self.session, self.output, self.factor = session, name, factor
        self.programs = session.programs

    def run(self, program: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        out: dict[str, Any] = self.session.run(program, inputs)
        return {n: np.asarray(v * self.factor, v.dtype) if n == self.output else v for n, v in out.items()}

    def close(self) -> None:
        pass


def test_a_user_with_habits_gets_better(bundle: Bundle, session: EngineSession) -> None:
    result = personalize_user(bundle, session, "ann", tiny.texts("ann"), general=tiny.texts("cleo"))
    assert result.status == "adopted"
    assert result.examples == {"all": 30, "train": 19, "holdout": 5, "test": 6} | UNUSED
    assert result.after["top1"] > result.before["top1"]
    assert result.after["loss"] < result.before["loss"]
    assert result.general_before is not None
    assert result.general_after is not None
    assert result.general_before != result.general_after
    assert result.slots == 1
    assert result.steps == 15


def test_the_encoder_is_what_manifest_and_file_say(tmp_path: Path, bundle: Bundle) -> None:
    encoder = text_encoder(bundle)
    assert encoder is not None
    assert encoder.tokenizer.rules.version == 2

    def opened(text: str, **entry: Any) -> TextEncoder | None:
        path = tmp_path / "tokenizer.json"
        path.write_text(text, encoding="utf-8")
        told = manifest.TextEncoderEntry(length=8, batch=2, vocabulary=500, **entry)
        return text_encoder(SimpleNamespace(manifest=SimpleNamespace(encoder=told), tokenizer_path=path))

    old = WordTokenizer.train(["see you"], 9, VERSION_1).to_json()
    before = opened(old)
    assert before is not None
    assert before.tokenizer.words("\u200b❤️") == ["\u200b", "❤️"]
    with pytest.raises(DataError, match="version 2 of the piece rules, the tokenizer's file version 1"):
        opened(old, rules=2)
    with pytest.raises(DataError, match="version 1 of the piece rules"):
        opened(encoder.tokenizer.to_json())
    library = Tokenizer(models.WordPiece({"[UNK]": 0, "[S]": 1, "se": 2, "##e": 3}, unk_token="[UNK]"))
    found = opened(library.to_str(), rules=2, subwords={"pad": 1, "bos": 1, "eos": 1, "unk": 0})
    assert found is not None
    assert found.ids("see") == [2, 3]


def test_a_newer_version_of_a_bundle_keeps_what_was_learned(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    personal_store(bundle, tmp_path / "ann").save(PersonalState(bundle.values(), words=("zorp",)))
    newer = bundle.manifest.model_copy(update={"version": "2"})
    monkeypatch.setattr(bundle, "manifest", newer)
    loaded = personal_store(bundle, tmp_path / "ann").load()
    assert loaded.state is not None
    assert (loaded.version, loaded.state.words) == (1, ("zorp",))
    unknown_weights = newer.model_copy(update={"version": "3", "frozen_sha256": None})
    monkeypatch.setattr(bundle, "manifest", unknown_weights)
    with pytest.raises(StateError):
        personal_store(bundle, tmp_path / "ann").load()


def test_the_json_holds_no_words_of_the_user(bundle: Bundle, session: EngineSession) -> None:
    result = personalize_user(bundle, session, "ann", tiny.texts("ann"))
    text = json.dumps(result.to_json(), allow_nan=False)
    assert result.report.words == ("zorp",)
    assert "zorp" not in text
    assert {"user", "examples", "before", "after", "guard", "steps", "ms_per_step", "peak_mb"} <= set(
        json.loads(text)
    )


def test_the_test_part_is_never_shown_to_the_trainer(bundle: Bundle, session: EngineSession) -> None:
    texts = [*tiny.texts("ann", 24), *["blorp blorp blorp"] * 6]
    shown: list[Any] = []
    evaluator = Evaluator(bundle, session)
    original = evaluator.trainer.personalize
    evaluator.trainer.personalize = lambda a, b, *r, **k: shown.extend([*a, *b]) or original(a, b, *r, **k)  # type: ignore[method-assign,func-returns-value]
    result = evaluator.personalize("ann", texts)
    assert shown == texts[:24]
    assert "blorp" not in result.report.words


def test_engines_give_the_same_result(bundle: Bundle, session: EngineSession) -> None:
    one = personalize_user(bundle, session, "bob", tiny.texts("bob"))
    with open_session(bundle, "torch") as other:
        two = personalize_user(bundle, other, "bob", tiny.texts("bob"))
    assert one.after["top1"] == two.after["top1"]
    assert one.after["loss"] == pytest.approx(two.after["loss"], rel=1e-4)


def test_unknown_words_are_misses_but_not_in_the_loss(bundle: Bundle, session: EngineSession) -> None:
    evaluator = Evaluator(bundle, session)
    plain = evaluator.measure(["see you"], None)
    mixed = evaluator.measure(["see you", "qwx"], None)
    assert mixed["top3"] == pytest.approx(plain["top3"] * 2 / 3)
    encoder = evaluator.encoder
    assert encoder is not None
    rows = encoder.encode(["see you", "qwx"])
    assert UNK in rows["labels"]
    assert mixed["loss"] == pytest.approx(plain["loss"], rel=1e-5)


def test_only_unknown_words_have_no_loss(bundle: Bundle, session: EngineSession) -> None:
    assert Evaluator(bundle, session).measure(["qwx"], None) == {"top1": 0.0, "top3": 0.0}


def test_a_second_run_goes_on_from_the_stored_state(
    bundle: Bundle, session: EngineSession, tmp_path: Path
) -> None:
    store = PersonalStateStore(tmp_path / "state", model_id(bundle))
    first = personalize_user(bundle, session, "ann", tiny.texts("ann"), state=store, checkpoint_every=5)
    second = personalize_user(bundle, session, "ann", tiny.texts("ann"), state=store, checkpoint_every=5)
    assert second.before["top1"] == first.after["top1"]
    assert store.current == first.report.version or second.status == "adopted"


def test_cancelling_keeps_the_old_state(bundle: Bundle, session: EngineSession) -> None:
    cancel = threading.Event()
    result = personalize_user(
        bundle, session, "ann", tiny.texts("ann"), cancel=cancel, on_progress=lambda p: cancel.set()
    )
    assert (result.status, result.steps, result.guard) == ("cancelled", 1, None)
    assert result.after == result.before


@pytest.mark.parametrize("test", [0.0, 1.0, -1.0, float("nan")])
def test_the_test_part_is_a_share(bundle: Bundle, session: EngineSession, test: float) -> None:
    with pytest.raises(ConfigError, match="test part"):
        personalize_user(bundle, session, "ann", tiny.texts("ann"), test=test)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_examples_is_an_error(bundle: Bundle, session: EngineSession, count: int) -> None:
    with pytest.raises(NoExamplesError, match=f"{count} example"):
        personalize_user(bundle, session, "ann", tiny.texts("ann", count))


def test_two_examples_train_nothing(bundle: Bundle, session: EngineSession) -> None:
    result = personalize_user(bundle, session, "ann", tiny.texts("ann", 2))
    assert result.status == "skipped"
    assert result.guard is not None
    assert result.guard["reason"] == "too_few_examples"


def test_array_bundles_take_rows(tiny_arrays: Path) -> None:
    x = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    rows: dict[str, np.ndarray] = {
        "x": x,
        "labels": (x[:, 0] > 0).astype(np.int64),
        "weight": np.ones(40, np.float32),
    }
    with Bundle.open(tiny_arrays) as opened, open_session(opened, "torch") as loaded:
        result = personalize_user(opened, loaded, "u", rows)
        assert result.examples == {"all": 40, "train": 26, "holdout": 6, "test": 8} | UNUSED
        assert result.after["loss"] < result.before["loss"]
        with pytest.raises(ConfigError, match="arrays, not texts"):
            personalize_user(opened, loaded, "u", ["a", "b", "c"])


def test_an_engine_that_disagrees_is_refused(bundle: Bundle, session: EngineSession) -> None:
    name = "grad.blocks.0.attn.q.lora_B"
    report = golden_check(bundle, Wrong(session, name, 1.01))
    assert not report.ok
    assert report.worst == f"gradients.{name}"
    assert report.grad_max_rel_err == pytest.approx(0.01, rel=1e-3)
    assert report.loss_rel_err < 1e-5
    with pytest.raises(EngineMismatchError, match="lora_B"):
        personalize_user(bundle, Wrong(session, name, 1.01), "ann", tiny.texts("ann"))


def test_a_value_that_is_not_finite_is_wrong_and_still_json(bundle: Bundle, session: EngineSession) -> None:
    report = golden_check(bundle, Wrong(session, "loss_sum", float("nan")))
    assert not report.ok
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["loss_rel_err"] is None


def test_engines_agree_with_the_golden_batch(bundle: Bundle, session: EngineSession) -> None:
    report = golden_check(bundle, session)
    assert report.ok
    assert report.grad_max_rel_err < 1e-4


def test_relative_error_limits() -> None:
    zero, one = np.zeros(2), np.ones(2)
    assert relative_error(zero, zero) == 0
    assert relative_error(one, zero) == np.inf
    assert relative_error(np.array([1.0, np.nan]), one) == np.inf
    assert relative_error(np.array([1.0, 1.5]), np.array([1.0, 2.0])) == 0.25


def test_one_near_tie_is_no_error_and_two_are() -> None:
    want, weight = {"top1_sum": np.array([10.0])}, np.ones(4)
    errors = [next(output_errors({"top1_sum": np.array([v])}, want, weight)).error for v in (11.0, 12.0)]
    assert errors == [0.0, pytest.approx(0.2)]


def test_only_hits_may_be_off_by_one() -> None:
    want, weight = {"mae_sum": np.array([0.5])}, np.ones(4)
    assert next(output_errors({"mae_sum": np.array([0.9])}, want, weight)).error == pytest.approx(0.8)


def test_suggestions_are_compared_except_for_ties() -> None:
    def error(got: list[list[int]], probs: list[list[float]]) -> float:
        want = {"top_ids": np.array([[5, 7]] * len(got)), "top_probs": np.array(probs)}
        return next(output_errors({**want, "top_ids": np.array(got)}, want)).error

    assert error([[5, 7]], [[0.5, 0.3]]) == 0
    assert error([[7, 5]], [[0.5, 0.3]]) == 1  # another order
    assert error([[7, 5]], [[0.3, 0.3]]) == 0  # a tie
    assert error([[5, 9]], [[0.3, 0.2]]) == 0  # maybe a tie with who comes after the last
    assert error([[5, 9]], [[0.6, 0.3]]) == 1  # no other can have as much
    assert error([[5, 9]] * 2, [[0.3, 0.2]] * 2) == 1  # not twice


def results(gains: list[float]) -> list[UserResult]:
    class Report:
        notes: tuple[str, ...] = ()
        warnings: tuple[str, ...] = ()

    base: dict[str, Any] = {f.name: None for f in dataclasses.fields(UserResult)}
    base |= {"engine": "onnxruntime", "status": "adopted", "report": Report(), "ms_per_step": 2.0}
    return [
        UserResult(
            **{
                **base,
                "before": {"top1": 0.2, "top3": 0.3, "loss": 4.0},
                "after": {"top1": 0.2 + g, "top3": 0.3 + g, "loss": 3.0},
                "general_before": {"top3": 0.4},
                "general_after": {"top3": 0.39},
            }
        )
        for g in gains
    ]


def test_summary_has_the_fields_of_the_demo() -> None:
    found = summarize(results([0.05] * 18 + [-0.02, 0.0]))
    assert found["users"] == 20
    assert (found["users_better"], found["users_worse"]) == (18, 1)
    assert found["top1_before"] == pytest.approx(20)
    assert found["top1_after"] == pytest.approx(20 + (18 * 5 - 2) / 20)
    assert found["worst_decile_gain"] == pytest.approx(-1)
    assert found["general_top3_before"] == pytest.approx(40)
    assert found["general_top3_after"] == pytest.approx(39)
    assert (found["engine"], found["ms_per_step"]) == ("onnxruntime", 2.0)


def test_summary_of_nobody_is_an_error() -> None:
    with pytest.raises(NoExamplesError):
        summarize([])


@pytest.mark.slow
def test_the_phone_engine_agrees(tiny_bundle_android: Path) -> None:
    with Bundle.open(tiny_bundle_android) as opened, open_session(opened, "executorch") as loaded:
        assert golden_check(opened, loaded).ok
        result = personalize_user(opened, loaded, "ann", tiny.texts("ann"))
        assert result.engine == "executorch"
        assert result.after["top1"] > result.before["top1"]
