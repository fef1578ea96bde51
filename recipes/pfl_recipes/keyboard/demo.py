"""The main job: train the keyboard, export it for Android, personalize every held-out user through the program.

Nothing after the export uses PyTorch: gradients, evaluation and suggestions all come from the ``.pte``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pfl_exporters.export import ExportReport, export_bundle
from pfl_exporters.targets import target_of
from pfl_mobile.bundle.read import Bundle
from pfl_mobile.data import Split
from pfl_mobile.engines import open_session
from pfl_mobile.engines.base import Session
from pfl_mobile.errors import DataError
from pfl_mobile.files.atomic import atomic_write
from pfl_mobile.local.evaluation import Evaluator, UserResult, summarize
from pfl_mobile.local.state import PersonalState
from pfl_mobile.text.encoder import TextEncoder
from pfl_mobile.text.vocabulary import VocabularyRule

from .baselines import BaselineComparison, compare_presage, compare_trigram, pieces
from .keystrokes import Score, Suggest, score
from .plots import draw
from .recipe import DEFAULT_DATA, KeyboardRecipe, Prepared, deploy, prepare, recipe_for

#: ``report(what, fraction done or None)``.
Report = Callable[[str, float | None], None]

#: Held-out messages of each user on which letters are typed one by one.
TYPED_MESSAGES = 10

#: What the command prints as JSON, in this order.
FIELDS = (
    "dataset",
    "users",
    "top1_before",
    "top1_after",
    "top3_before",
    "top3_after",
    "users_better",
    "users_worse",
    "worst_decile_gain",
    "general_top3_before",
    "general_top3_after",
    "trigram_top1_after",
    "engine",
    "ms_per_step",
)


def suggester(session: Session, encoder: TextEncoder, tensors: Mapping[str, np.ndarray]) -> Suggest:
    """Suggestions of the ``predict`` program: its words in order, those that begin with the typed letters.

    Args:
        session: loaded programs.
        encoder: with the user's words in the slots.
        tensors: device tensors of the user.
    """
    words_of: dict[tuple[str, ...], list[str]] = {}

    def suggest(context: Sequence[str], typed: str, k: int) -> list[str]:
        key = tuple(context)
        if key not in words_of:
            if len(words_of) > 64:
                words_of.clear()
            inputs = {**tensors, **encoder.context(" ".join(context))}
            ids = session.run("predict", inputs)["top_ids"][0]
            words_of[key] = encoder.decode(int(i) for i in ids)
        return [w for w in words_of[key] if w.startswith(typed)][:k]

    return suggest


def _typed(evaluator: Evaluator, state: PersonalState | None, texts: Sequence[str]) -> Score:
    """Keystrokes and word recall with the program's suggestions, on the first held-out messages."""
    assert evaluator.encoder is not None
    tensors = evaluator.trainer.initial if state is None else {**evaluator.trainer.initial, **state.tensors}
    encoder = evaluator.encoder.with_words(() if state is None else state.words)
    return score(suggester(evaluator.session, encoder, tensors), pieces(texts[:TYPED_MESSAGES]))


def run(
    data: str | None = None,
    out: str | Path | None = None,
    users: int | None = None,
    report: Report | None = None,
    *,
    engine: str = "executorch",
    presage: bool = False,
    recipe: KeyboardRecipe | None = None,
    vocabulary: VocabularyRule | None = None,
    min_messages: int = 100,
    teacher: str | Path | None = None,
) -> dict[str, Any]:
    """Run the keyboard end to end and write bundle, table and plots.

    Args:
        data: dataset name or JSONL file; by default one that a package registry has.
        out: folder for the results; by default ``out/keyboard-<dataset>``.
        users: personalize at most so many held-out users.
        report: told about progress.
        engine: that runs the bundle on the users' messages.
        presage: also compare with presage, which has to be installed.
        recipe: settings; by default those of the dataset.
        vocabulary: which words of the users may ship; by default those of 5 users.
        min_messages: that a user needs to be personalized.
        teacher: folder of a language model that teaches the backbone in place of the recipe's teachers.

    Returns:
        The fields of :data:`FIELDS`, then further figures, among them ``keystroke_savings_before`` and ``_after``
        in percent, ``seconds`` by step, and ``report``, the page that was written.
    """
    say = report or (lambda _what, _fraction: None)
    target = target_of(engine)
    if teacher is not None:
        recipe = (recipe or recipe_for(data or DEFAULT_DATA)).taught_by(str(teacher))
    clock, seconds = time.perf_counter(), {}

    def lap(step: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[step], clock = round(now - clock, 1), now

    prepared = prepare(data, recipe=recipe, min_messages=min_messages, report=say, vocabulary=vocabulary)
    lap("backbone")
    if not prepared.parts.test:
        raise DataError(
            f"{prepared.source} has one user, who is trained on: nobody is left to personalize",
            mend="give messages of more users; pfl-export keyboard exports it",
        )
    folder = Path(out or f"out/keyboard-{Path(prepared.source).stem}")
    exported = export_bundle(
        deploy(prepared), [target.name], folder / "bundle", report=lambda t: say(t, None)
    )
    lap("export")
    parts = _first_users(prepared.parts, users)
    results, typed = _personalize(folder / "bundle", engine, prepared, parts, say)
    lap("personalize")
    trigram = compare_trigram(parts, typing=False, progress=say)
    lap("trigram")
    others = {"trigram": trigram.summary()}
    if presage:
        others["presage"] = compare_presage(parts, max_messages=TYPED_MESSAGES, progress=say).summary()
        others["trigram_typing"] = compare_trigram(parts, max_messages=TYPED_MESSAGES, progress=say).summary()
        lap("presage")
    summary = _summary(prepared, results, typed, trigram, exported)
    found: dict[str, Any] = {name: summary[name] for name in FIELDS} | summary
    found |= {"seconds": seconds, "baselines": others, "left_out": prepared.left_out}
    say("write table and plots", None)
    page = _write(folder, prepared, results, found)
    return found | {"report": str(page)}


def _first_users(parts: Split, most: int | None) -> Split:
    return Split(parts.train, dict(list(parts.test.items())[:most]))


def _personalize(
    place: Path, engine: str, prepared: Prepared, parts: Split, say: Report
) -> tuple[list[UserResult], list[tuple[Score, Score]]]:
    results, typed = [], []
    with Bundle.open(place) as bundle, open_session(bundle, engine, trusted=True) as session:
        evaluator = Evaluator(bundle, session, general=prepared.general)
        for done, (user, texts) in enumerate(parts.test.items()):
            say(f"personalize {len(parts.test)} users through {engine}", done / len(parts.test))
            result = evaluator.personalize(user, [*texts.history, *texts.held_out])
            results.append(result)
            before = _typed(evaluator, None, texts.held_out)
            changed = result.status == "adopted"
            typed.append(
                (before, _typed(evaluator, result.report.state, texts.held_out) if changed else before)
            )
    return results, typed


def _summary(
    prepared: Prepared,
    results: Sequence[UserResult],
    typed: Sequence[tuple[Score, Score]],
    trigram: BaselineComparison,
    exported: ExportReport,
) -> dict[str, Any]:
    rates = [(before.rates(), after.rates()) for before, after in typed]
    summary = {"dataset": prepared.source, **summarize(results)}
    for name in ("keystroke_savings", "word_top1", "word_top3"):
        summary[f"{name}_before"] = float(np.mean([b[name] for b, _ in rates]))
        summary[f"{name}_after"] = float(np.mean([a[name] for _, a in rates]))
    baseline = trigram.summary()
    summary["trigram_top1_before"] = baseline["top1_before"]
    summary["trigram_top1_after"] = baseline["top1_after"]
    summary["trigram_top3_after"] = baseline["top3_after"]
    summary["backbone_parameters"] = sum(
        t.numel() for n, t in prepared.model.frozen_tensors().items() if not n.startswith("memory")
    )
    summary["export"] = exported.to_json()
    summary["personal_bytes"] = sum(v.numpy().nbytes for v in prepared.model.values().values())
    return summary


def _write(folder: Path, prepared: Prepared, results: Sequence[UserResult], found: Mapping[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    everything = {**found, "per_user": [r.to_json() for r in results]}
    atomic_write(folder / "report.json", json.dumps(everything, indent=1).encode())
    draw(folder, results, found)
    page = folder / "report.md"
    atomic_write(page, _page(prepared, results, found).encode())
    return page


def _page(prepared: Prepared, results: Sequence[UserResult], found: Mapping[str, Any]) -> str:
    def pair(name: str, digits: int = 1) -> str:
        before, after = found[f"{name}_before"], found[f"{name}_after"]
        return f"{before:.{digits}f} | {after:.{digits}f} | {after - before:+.{digits}f}"

    lines = [
        f"# Keyboard on {found['dataset']}: {found['users']} users the backbone never saw",
        "",
        f"Personalized through {found['engine']}, {found['ms_per_step']:.1f} ms a step. Each user's oldest 80 % of "
        "messages were learned from, the newest 20 % tested on. Recall in percent, mean over users.",
        "",
        "| | before | after | gain |",
        "| --- | --- | --- | --- |",
        f"| top-1 recall | {pair('top1')} |",
        f"| top-3 recall | {pair('top3')} |",
        f"| top-1, words only ({TYPED_MESSAGES} messages a user) | {pair('word_top1')} |",
        f"| keystroke savings ({TYPED_MESSAGES} messages a user) | {pair('keystroke_savings')} |",
        f"| top-3 on other people's text (forgetting) | {pair('general_top3', 2)} |",
        f"| top-1 of the interpolated trigram | {pair('trigram_top1')} |",
        "",
        f"Better for {found['users_better']} users, worse for {found['users_worse']}; the tenth that gained least: "
        f"{found['worst_decile_gain']:+.2f} points of top-1. The guard adopted {found['adopted']} of "
        f"{found['users']}.",
        "",
        "![recall of each user before and after](users.png)",
        "",
        "| user | messages | top-1 | after | top-3 | after | own words | steps | guard |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in results:
        b, a = r.before, r.after
        lines.append(
            f"| {r.user} | {r.examples['all']} | {100 * b['top1']:.1f} | {100 * a['top1']:.1f} | "
            f"{100 * b['top3']:.1f} | {100 * a['top3']:.1f} | {r.slots} | {r.steps} | {r.status} |"
        )
    lines += [
        "",
        f"Backbone: {found['backbone_parameters'] / 1e6:.2f} million parameters; personal state: "
        f"{found['personal_bytes'] / 1e6:.2f} MB; settings: `{prepared.recipe.plan().model_dump_json()}`",
        "",
    ]
    return "\n".join(lines)
