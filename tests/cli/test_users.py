"""``pfl personalize``."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pfl_mobile.data import Generator, registry
from pfl_mobile.data.populations import ArrayPopulation
from pfl_mobile.local.trainer import LocalTrainer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Ran

    Run = Callable[..., Ran]


def test_personalize_json(pfl: Run, tiny_bundle: Path, messages: Path) -> None:
    ran = pfl(
        "personalize", tiny_bundle, "--data", messages, "--user", "ann", "--engine", "onnxruntime", "--json"
    )
    assert ran.code == 0
    found = ran.json
    assert (found["user"], found["engine"], found["status"]) == ("ann", "onnxruntime", "adopted")
    assert found["after"]["top1"] > found["before"]["top1"]
    assert found["guard"]["adopted"]
    assert found["steps"] > 0
    assert found["ms_per_step"] > 0
    assert "zorp" not in ran.out + ran.err


def test_personalize_for_people(pfl: Run, tiny_bundle: Path, messages: Path) -> None:
    ran = pfl("personalize", tiny_bundle, "--data", messages, "--user", "bob", "--general", messages)
    assert ran.code == 0
    for part in ("top1", "general top3", "guard: adopted", "steps on onnxruntime"):
        assert part in ran.out
    assert "personalize bob" in ran.err


def test_near_names_for_an_unknown_user(pfl: Run, tiny_bundle: Path, messages: Path) -> None:
    ran = pfl("personalize", tiny_bundle, "--data", messages, "--user", "anne", "--json")
    assert (ran.code, ran.error["type"]) == (2, "UnknownNameError")
    assert "'ann'" in ran.error["mend"]


def test_values_that_engines_take_differently_are_refused(
    pfl: Run, tiny_arrays: Path, tmp_path: Path
) -> None:
    x = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    labels, weight = (x[:, 0] > 0).astype(np.int64), np.ones(20, np.float32)
    hole = x.copy()
    hole[3, 1] = np.nan
    for rows, words in (
        ({"x": hole, "labels": labels}, "'x' is not finite in row 3"),
        ({"x": x, "labels": labels - 1}, "label -1 is not in 0..3"),
        ({"x": x, "labels": labels + 4}, "is not in 0..3"),
        ({"x": x, "labels": labels, "weight": -weight}, "a weight is negative"),
    ):
        np.savez(tmp_path / "rows.npz", **rows)
        ran = pfl("personalize", tiny_arrays, "--data", tmp_path / "rows.npz", "--user", "a", "--json")
        assert (ran.code, ran.error["type"]) == (2, "DataError")
        assert words in ran.error["message"]
    one = tmp_path / "one.npz"
    with one.open("wb") as file:
        np.save(file, x)
    ran = pfl("personalize", tiny_arrays, "--data", one, "--user", "a", "--json")
    assert "not a .npz file" in ran.error["message"]


@pytest.mark.parametrize("source", ["no-such-set", "missing.jsonl"])
def test_wrong_data(pfl: Run, tiny_bundle: Path, source: str) -> None:
    ran = pfl("personalize", tiny_bundle, "--data", source, "--user", "x", "--json")
    assert (ran.code, ran.error["type"]) == (2, "UnknownNameError")


def test_a_damaged_line_is_named(pfl: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"user": "a", "text": "x"}\n{"user": 1')
    ran = pfl("personalize", tiny_bundle, "--data", tmp_path / "bad.jsonl", "--user", "a", "--json")
    assert (ran.code, ran.error["type"]) == (2, "DataError")
    assert "line 2" in ran.error["message"]


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_keeps_the_state_and_the_same_command_goes_on(
    pfl: Run, tiny_bundle: Path, messages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = LocalTrainer.personalize

    def interrupted(self: LocalTrainer, *args: Any, on_progress: Callable[[Any], None], **more: Any) -> Any:
        def progress(at: Any) -> None:
            on_progress(at)
            if at.step == 3:
                os.kill(os.getpid(), signal.SIGINT)

        return original(self, *args, on_progress=progress, **more)

    arguments = [
        "personalize",
        tiny_bundle,
        "--data",
        messages,
        "--user",
        "ann",
        "--state",
        tmp_path / "s",
        "--json",
    ]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        with monkeypatch.context() as patch:
            patch.setattr(LocalTrainer, "personalize", interrupted)
            ran = pfl(*arguments)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert ran.code == 130
    assert (ran.json["status"], ran.json["steps"]) == ("cancelled", 3)
    again = pfl(*arguments)
    assert (again.code, again.json["status"]) == (0, "adopted")


def test_personalize_an_array_bundle(pfl: Run, tiny_arrays: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((60, 6))
    users = np.array(["u", "v"] * 30)
    np.savez(tmp_path / "rows.npz", x=x, labels=(x[:, 0] > 0).astype(np.int64), user=users)
    arguments = ["personalize", tiny_arrays, "--data", tmp_path / "rows.npz", "--engine", "torch", "--json"]
    assert pfl(*arguments, "--user", "u").json["examples"]["all"] == 30
    assert pfl(*arguments, "--user", "w").error["type"] == "UnknownNameError"
    np.savez(tmp_path / "rows.npz", y=x, user=users)
    assert "no array 'x'" in pfl(*arguments, "--user", "u").error["message"]
    (tmp_path / "rows.npz").write_text("no zip")
    assert pfl(*arguments, "--user", "u").error["type"] == "DataError"
    (tmp_path / "rows.npz").unlink()
    assert pfl(*arguments, "--user", "u").error["type"] == "DataError"


STUDY = """
import numpy as np
from torch import nn
from pfl_mobile.data.populations import ArrayPopulation
from pfl_mobile.study import Study

def study():
    rows = {"x": np.zeros((20, 6)), "labels": np.zeros(20, int), "weight": np.full(20, 3.0)}
    return Study(lambda: nn.Sequential(nn.Linear(6, 4)), ArrayPopulation.of("six", {"u": rows, "v": rows, "w": rows}))
"""


def test_arrays_come_from_datasets_and_studies_by_name(
    pfl: Run, tiny_arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def people() -> ArrayPopulation:
        draw = np.random.default_rng(0)
        users = {u: draw.normal(size=(n, 6)) for u, n in (("u", 30), ("v", 20), ("w", 25))}
        rows = {u: {"x": x, "labels": (x[:, 0] > 0).astype(int)} for u, x in users.items()}
        return ArrayPopulation.of("six", {u: {**r, "weight": np.ones(len(r["x"]))} for u, r in rows.items()})

    six = Generator(name="six", summary="", build=people)
    monkeypatch.setitem(registry.DATASETS._items, "six", (six, __name__))
    (tmp_path / "mine.py").write_text(STUDY)

    def personalize(source: object, *more: object, user: str = "u") -> Ran:
        arguments = ("--data", source, "--user", user, "--engine", "torch", "--json", *more)
        return pfl("personalize", tiny_arrays, *arguments)

    found = personalize("six", "--general", "six").json
    assert (found["examples"]["all"], found["general_before"] is not None) == (30, True)
    assert personalize(f"{tmp_path / 'mine.py'}:study").json["examples"]["all"] == 20
    for source, user, kind, words in (
        ("six", "x", "UnknownNameError", "no user 'x'"),
        ("synthetic", "user-000", "DataError", "'x' has shape"),
        ("sotu", "lincoln", "DataError", "sotu is messages, not arrays"),
        ("wisdn", "5", "UnknownNameError", "no dataset and no recipe"),
    ):
        error = personalize(source, user=user).error
        assert (error["type"], words in error["message"]) == (kind, True)
    assert "'wisdm'" in error["mend"]
    assert "x float32[rows, 6]" in error["mend"]


def test_json_is_the_only_thing_on_standard_output(pfl: Run, tiny_bundle: Path, messages: Path) -> None:
    ran = pfl("personalize", tiny_bundle, "--data", messages, "--user", "ann", "--json")
    assert json.loads(ran.out)["user"] == "ann"


def write_messages(path: Path, lines: list[tuple[str, str]], blank: int = 0) -> Path:
    text = "".join(json.dumps({"user": user, "text": message}) + "\n" for user, message in lines)
    path.write_text(text + "  \n" * blank)
    return path


def test_repeated_messages_stay_and_what_is_left_out_is_counted(pfl: Run, tmp_path: Path) -> None:
    lines = [("same", "on my way")] * 150 + [("same", "  ")] * 2 + [("none", "")] + [("few", "hi")]
    source = write_messages(tmp_path / "own.jsonl", lines, blank=3)
    found = pfl("data", "users", source, "--min", 2, "--json").json
    assert found["users"] == [{"user": "same", "messages": 150}]
    assert (found["fewer"], found["left_out"]) == (1, {"blank_line": 3, "empty": 3})
    shown = pfl("data", "users", source, "--min", 2).out
    assert "1 users with fewer than 2 messages (--min)" in shown
    assert "left out: 3 blank (lines of the file), 3 without text" in shown


def test_personalize_says_what_is_not_learned_from(
    pfl: Run, tiny_bundle: Path, messages: Path, tmp_path: Path
) -> None:
    own = [json.loads(line) for line in messages.read_text().splitlines()]
    mine = [("ann", line["text"]) for line in own if line["user"] == "ann"]
    lines = [("ann", "\x01"), ("ann", " "), ("ann", "qwertz"), *mine, *mine]
    source = write_messages(tmp_path / "own.jsonl", lines)
    ran = pfl("personalize", tiny_bundle, "--data", source, "--user", "ann", "--json")
    counts = ran.json["examples"]
    assert ran.json["left_out"] == {"empty": 1}
    assert counts["all"] == 2 + 2 * len(mine)
    assert counts["train"] + counts["holdout"] + counts["test"] + counts["older"] == counts["all"]
    assert (counts["no_words"], counts["unknown_words"]) == (1, 1)
    shown = pfl("personalize", tiny_bundle, "--data", source, "--user", "ann").out
    for words in (
        "1 messages without a word",
        "1 messages have no word of the shipped",
        "left out: 1 without text",
    ):
        assert words in shown


def test_too_few_messages_name_what_was_left_out(pfl: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    source = write_messages(tmp_path / "own.jsonl", [("ann", "hi there")] + [("ann", " ")] * 7)
    ran = pfl("personalize", tiny_bundle, "--data", source, "--user", "ann", "--json")
    assert (ran.code, ran.error["type"]) == (2, "NoExamplesError")
    assert "left out: 7 without text" in ran.error["message"]
    nothing = write_messages(tmp_path / "nothing.jsonl", [("ann", " ")], blank=2)
    ran = pfl("data", "users", nothing, "--json")
    assert (ran.code, ran.error["type"]) == (2, "DataError")
    assert "no messages; left out: 2 blank (lines of the file), 1 without text" in ran.error["message"]
