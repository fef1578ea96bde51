"""A pretrained language model in the keyboard's place, on the same messages of the same users.

    python -m pfl_recipes.keyboard.language_model FOLDER --data nus-sms --users 10 --messages 10 --json

FOLDER is a causal language model as transformers saves it. It is exported with LoRA, by default learns first from
messages of users who are not tested, as the keyboard's backbone did, and is then personalized for each test user
through the exported program, guard included. Its suggestions are whole words (:mod:`pfl_mobile.text.whole_words`),
counted as the keyboard's are (:mod:`.keystrokes`). It sees the message as it was typed, upper case and spaces included;
the keyboard and the trigram see its words.

Each user's figures are kept in the output folder as soon as they are there: the command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pfl_exporters.export import export_bundle
from pfl_exporters.hugging_face import Shape, by_leaf
from pfl_exporters.hugging_face import deployment as model_deployment
from pfl_exporters.targets import target_of
from pfl_mobile import data
from pfl_mobile.bundle.read import Bundle
from pfl_mobile.engines import open_session
from pfl_mobile.files.atomic import atomic_write
from pfl_mobile.files.tensors import load_tensors, save_tensors
from pfl_mobile.local.evaluation import Evaluator
from pfl_mobile.local.parts import parts
from pfl_mobile.local.results import peak_mb
from pfl_mobile.local.state import PersonalState
from pfl_mobile.modules.lora import LoRA
from pfl_mobile.plan.optimizers import AdamW
from pfl_mobile.plan.phases import TrainPhase
from pfl_mobile.plan.schema import Guard, Plan
from pfl_mobile.programs.deployment import Deployment
from pfl_mobile.programs.tasks import TokenTask
from pfl_mobile.text.whole_words import WholeWords

from .baselines import BaselineComparison, compare_trigram, pieces
from .demo import suggester
from .keystrokes import Score, score
from .recipe import deploy, prepare

#: ``report(what, fraction done or None)``.
Report = Callable[[str, float | None], None]

#: What a device does: one pass over the newest messages. The defaults of ``pfl-export``, with the keyboard's guard.
PLAN = Plan(
    phases=(TrainPhase(epochs=1, optimizer=AdamW(lr=1e-3), clip=1.0),),
    guard=Guard(metric="loss", min_examples=5),
    holdout=0.1,
)
#: Ids that ``predict`` gives: enough that letters which were typed find the likeliest words that begin so.
TOP_K = 4096


@dataclass(frozen=True)
class LanguageModelRun:
    """What is measured.

    Attributes:
        model: folder of the language model.
        source: dataset of messages by user.
        users: of those that the keyboard holds out, the first so many.
        messages: of each user's newest 20 %, the first so many are typed.
        weights: how frozen weights are stored: ``float32``, ``int8``, ``int4``.
        engine: that runs the programs.
        start: messages of other users that LoRA learns first; 0 for none.
        newest: messages of a user that a device keeps.
        calls: of the program for one suggestion, besides the first.
        typing: also type the messages; without it only the program's own measure is taken, in subwords (faster).
        batch: rows of a step.
        length: subwords of a row.
    """

    model: str
    source: str
    users: int = 10
    messages: int = 10
    weights: str = "float32"
    engine: str = "onnxruntime"
    start: int = 1200
    newest: int = 300
    calls: int = 4
    typing: bool = True
    batch: int = 4
    length: int = 32

    @property
    def name(self) -> str:
        """Of the folder for its results: different for all that changes them, but how many users there are."""
        return f"{self.weights}-{self._digest()}"

    @property
    def start_name(self) -> str:
        """Of what LoRA learns first, which is the same for all kinds of weights and all messages that are tested."""
        same = replace(self, weights="float32", engine="", messages=0, newest=0, calls=0, typing=True)
        return f"start-{same._digest()}.safetensors"

    def _digest(self) -> str:
        settings = asdict(replace(self, users=0)) | {"plan": PLAN.model_dump(mode="json"), "top_k": TOP_K}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def deployment(run: LanguageModelRun, report: Callable[[str], None] = lambda _: None) -> Deployment:
    """The language model with LoRA on query and value.

    Raises:
        DataError, ConfigError, UnknownNameError: the folder, as :func:`pfl_exporters.hugging_face.deployment` says.
    """
    made = model_deployment(
        run.model,
        [LoRA(by_leaf(("q_proj", "v_proj")), rank=8)],
        shape=Shape(run.batch, run.length),
        plan=PLAN,
        report=report,
    )
    task = made.task
    assert isinstance(task, TokenTask)
    never = task.specials + sum(behind - first for first, behind in task.never)
    return replace(
        made,
        task=replace(task, top_k=min(TOP_K, task.vocabulary - never)),
        weights=run.weights,
        limits={**made.limits, "max_examples": run.newest},
    )


def written(text: str) -> list[str]:
    """What stands before each piece of a text, and the whole text, without the space behind.

    A piece that the rules change by what follows it has the pieces before it, joined by spaces.
    """
    (own,) = pieces([text])
    before, place = [""], 0
    for count in range(1, len(own) + 1):
        ends = (j for j in range(place, len(text) + 1) if pieces([text[:j]])[0] == own[:count])
        end = next(ends, None)
        before.append(" ".join(own[:count]) if end is None else text[:end])
        place = place if end is None else end
    return before


def typed(words: WholeWords, texts: Sequence[str]) -> Score:
    """Recall and keystrokes of a language model on messages."""
    total = Score()
    for text in texts:
        before = written(text)

        def suggest(context: Sequence[str], begun: str, _k: int, before: list[str] = before) -> list[str]:
            return words.suggest(before[len(context)], begun)

        total += score(suggest, pieces([text]))
    return total


def measure(
    run: LanguageModelRun, users: data.Split, out: Path, report: Report = lambda _what, _done: None
) -> dict[str, Any]:
    """Personalize the language model for each user.

    Args:
        run: the settings.
        users: test users, and those that LoRA may learn from first.
        out: folder for the bundle and the figures of each user; what is there already is not measured again.
        report: told about progress.

    Returns:
        ``before`` and ``after``, the scores by user; ``users``, all figures of each; ``general``, those of the
        start.
    """
    folder = out / run.name
    found: dict[str, dict[str, Any]] = {}
    missing = [user for user in users.test if not _file(folder, user).is_file()]
    if missing:
        with _evaluator(run, folder, report) as evaluator:
            start = _start(run, evaluator, users.train, out, report)
            for done, user in enumerate(missing):
                report(f"personalize the language model ({run.weights})", done / len(missing))
                figures = _one(run, evaluator, start, user, users.test[user])
                atomic_write(_file(folder, user), json.dumps(figures, indent=1).encode())
    for user in users.test:
        found[user] = json.loads(_file(folder, user).read_text())
    verified = json.loads((folder / "export.json").read_text())
    return {"weights": run.weights, "export": verified, "per_user": found}


def compared(found: Mapping[str, Any], name: str) -> BaselineComparison:
    """The figures of :func:`measure` beside those of the other predictors."""
    scores = {
        moment: {user: Score(**own[moment]) for user, own in found["per_user"].items()}
        for moment in ("before", "after")
    }
    return BaselineComparison(name, scores["before"], scores["after"])


def _file(folder: Path, user: str) -> Path:
    return folder / "users" / f"{hashlib.sha256(user.encode()).hexdigest()[:16]}.json"


@contextmanager
def _evaluator(run: LanguageModelRun, folder: Path, report: Report) -> Iterator[Evaluator]:
    bundle_folder = folder / "bundle"
    (folder / "users").mkdir(parents=True, exist_ok=True)
    if not (folder / "export.json").is_file():
        report(f"export the language model ({run.weights})", None)
        made = deployment(run, lambda text: report(text, None))
        done = export_bundle(
            made, [target_of(run.engine).name], bundle_folder, report=lambda text: report(text, None)
        ).to_json()
        done["weights"] = {k: v for k, v in (done["weights"] or {}).items() if k != "tensors"} or None
        atomic_write(folder / "export.json", json.dumps(done, indent=1).encode())
    with Bundle.open(bundle_folder) as bundle, open_session(bundle, run.engine, trusted=True) as session:
        yield Evaluator(bundle, session)


def _start(
    run: LanguageModelRun, evaluator: Evaluator, others: data.UserText, out: Path, report: Report
) -> PersonalState | None:
    """LoRA after messages of other users, with the weights of the first run; None for the shipped values."""
    if not run.start:
        return None
    place = out / run.start_name
    if not place.is_file():
        texts = [text for user in others.users for text in others.texts(user)]
        order = np.random.default_rng(0).permutation(len(texts))[: run.start]
        chosen = [texts[i] for i in order]
        held = max(run.start // 20, PLAN.guard.min_examples)
        begun = time.process_time()
        done = evaluator.trainer.personalize(
            chosen[held:],
            chosen[:held],
            on_progress=lambda p: report("learn from other users", p.step / p.of),
        )
        figures = {
            "weights": run.weights,
            "status": done.status, "steps": done.steps, "before": dict(done.before), "after": dict(done.after),
            "processor_seconds": round(time.process_time() - begun, 1),
        }  # fmt: skip
        tensors = evaluator.trainer.initial if done.state is None else done.state.tensors
        atomic_write(place.with_suffix(".json"), json.dumps(figures, indent=1).encode())
        save_tensors(place, tensors)
    return PersonalState(load_tensors(place))


def _one(
    run: LanguageModelRun,
    evaluator: Evaluator,
    start: PersonalState | None,
    user: str,
    texts: data.UserSplit,
) -> dict[str, Any]:
    assert evaluator.encoder is not None
    trainer = evaluator.trainer
    own = [*texts.history, *texts.held_out]
    cut = parts(own, test=0.2, holdout=PLAN.holdout, most=run.newest, what=f"user {user!r}")
    tested = texts.held_out[: run.messages]
    figures: dict[str, Any] = {"messages": len(own), "typed": len(tested)}

    def measured(state: PersonalState | None, moment: str) -> None:
        tensors = trainer.initial if state is None else {**trainer.initial, **state.tensors}
        words = WholeWords(
            lambda rows: evaluator.session.run("predict", {**tensors, **rows}),
            evaluator.encoder,  # type: ignore[arg-type]
            calls=run.calls,
        )
        begun = time.process_time()
        figures[moment] = asdict(typed(words, tested) if run.typing else Score())
        figures[f"{moment}_typing"] = {
            "calls": words.called,
            "processor_seconds": round(time.process_time() - begun, 2),
        }
        figures[f"{moment}_tokens"] = evaluator.measure(tested, state)

    measured(start, "before")
    begun = time.process_time()
    done = trainer.personalize(cut.train, cut.holdout, start)
    figures |= {
        "status": done.status,
        "steps": done.steps,
        "guard_before": dict(done.before),
        "guard_after": dict(done.after),
        "training_processor_seconds": round(time.process_time() - begun, 2),
        "peak_mb": peak_mb(),
    }
    if done.status == "adopted":
        measured(done.state, "after")
    else:
        figures["after"] = figures["before"]
        figures["after_tokens"] = figures["before_tokens"]
    return figures


def compare_keyboard(
    source: str,
    users: data.Split,
    out: Path,
    *,
    messages: int | None,
    weights: str = "float32",
    engine: str = "onnxruntime",
    min_messages: int = 100,
    report: Report = lambda _what, _done: None,
) -> tuple[BaselineComparison, dict[str, Any]]:
    """The keyboard of the recipe, exported and personalized for the same users, on the same messages.

    Args:
        source: dataset.
        users: the test users.
        out: folder for the bundle.
        messages: of each user's newest 20 % the first so many are typed; None for all.
        weights: how frozen weights are stored.
        engine: that runs the programs.
        min_messages: that a user needs to be held out.
        report: told about progress.

    Returns:
        The scores, and what the export measured with the recalls over all of each user's newest 20 %.
    """
    prepared = prepare(source, min_messages=min_messages, report=report)
    place = out / f"keyboard-{weights}"
    exported = export_bundle(
        replace(deploy(prepared), weights=weights),
        [target_of(engine).name],
        place,
        report=lambda text: report(text, None),
    ).to_json()
    before, after, results = {}, {}, []
    with Bundle.open(place) as bundle, open_session(bundle, engine, trusted=True) as session:
        evaluator = Evaluator(bundle, session)
        assert evaluator.encoder is not None
        shipped = evaluator.trainer.initial
        for done, (user, texts) in enumerate(users.test.items()):
            report(f"personalize the keyboard ({weights})", done / len(users.test))
            result = evaluator.personalize(user, [*texts.history, *texts.held_out])
            results.append(result)
            tested = pieces(texts.held_out[:messages])
            suggest = suggester(session, evaluator.encoder.with_words(()), shipped)
            before[user] = after[user] = score(suggest, tested)
            state = result.report.state
            if result.status == "adopted" and state is not None:
                own = evaluator.encoder.with_words(state.words)
                after[user] = score(suggester(session, own, {**shipped, **state.tensors}), tested)
    stored = exported["weights"] or {}
    figures = {
        "weights": weights,
        "engines": exported["engines"],
        "verified": exported["verified"],
        **{name: stored[name] for name in ("loss", "loss_float32", "output_rel_err") if name in stored},
        "adopted": sum(r.status == "adopted" for r in results),
    }
    for name in ("loss", "top1", "top3"):
        scale = 1.0 if name == "loss" else 100.0
        for moment in ("before", "after"):
            values = [getattr(result, moment)[name] for result in results]
            figures[f"all_{name}_{moment}"] = round(scale * float(np.mean(values)), 3)
    return BaselineComparison("keyboard", before, after), figures


def run_all(
    run: LanguageModelRun,
    out: str | Path,
    *,
    weights: Sequence[str] = ("float32",),
    peers: bool = True,
    min_messages: int = 100,
    report: Report = lambda _what, _done: None,
) -> dict[str, Any]:
    """The language model with each kind of weights, the keyboard and the trigram on the same messages.

    Args:
        run: settings; its weights are left out of account.
        out: folder for everything that is made.
        weights: kinds of weights.
        peers: also the keyboard and the trigram.
        min_messages: that a user needs to be held out.
        report: told about progress.

    Returns:
        ``rows``, by predictor the means over users before and after (see ``BaselineComparison.summary``), and
        further figures.
    """
    folder = Path(out)
    everybody = data.split(data.load(run.source, progress=report), min_messages=min_messages)
    users = data.Split(everybody.train, dict(list(everybody.test.items())[: run.users]))
    rows: dict[str, Any] = {}
    for kind in weights:
        found = measure(replace(run, weights=kind), users, folder, report)
        rows[f"language model, {kind}"] = compared(found, "language model").to_json() | _means(found)
    if peers:
        trigram = compare_trigram(users, max_messages=run.messages, progress=report)
        keyboard, figures = compare_keyboard(
            run.source, users, folder, messages=run.messages, engine=run.engine, min_messages=min_messages,
            report=report,
        )  # fmt: skip
        rows["keyboard"] = keyboard.to_json() | figures
        rows["trigram"] = trigram.to_json()
    settings = asdict(run)
    del settings["weights"]
    result = {"settings": settings, "pieces": _pieces(users, run.messages), "rows": rows}
    atomic_write(folder / "language_model.json", json.dumps(result, indent=1).encode())
    return result


def _pieces(users: data.Split, messages: int) -> int:
    return sum(len(own) for texts in users.test.values() for own in pieces(texts.held_out[:messages]))


def _means(found: Mapping[str, Any]) -> dict[str, Any]:
    """What a user costs, and what the program's own measure says."""
    own = list(found["per_user"].values())
    typing = [u[f"{moment}_typing"] for u in own for moment in ("before", "after") if f"{moment}_typing" in u]
    return {
        "export": found["export"],
        "adopted": sum(u["status"] == "adopted" for u in own),
        "steps": float(np.mean([u["steps"] for u in own])),
        "training_processor_seconds": float(np.mean([u["training_processor_seconds"] for u in own])),
        "ms_per_call": 1000
        * sum(t["processor_seconds"] for t in typing)
        / max(sum(t["calls"] for t in typing), 1),
        "peak_mb": max((u["peak_mb"] or 0.0) for u in own),
        **{
            f"subword_{name}_{moment}": float(np.mean([u[f"{moment}_tokens"][name] for u in own]))
            for name in ("loss", "top1", "top3")
            for moment in ("before", "after")
        },
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m pfl_recipes.keyboard.language_model",
        description="A pretrained language model in the keyboard's place, on the same messages of the same users.",
    )
    parser.add_argument("model", metavar="FOLDER", help="a causal language model as transformers saves it")
    parser.add_argument("--data", default="nus-sms", metavar="SRC", help="dataset name or JSONL file")
    parser.add_argument("--out", default="out/language-model", metavar="DIR", help="for all that is made")
    parser.add_argument("--users", type=int, default=10, help="test users")
    parser.add_argument("--messages", type=int, default=10, help="of each test user, that are typed")
    parser.add_argument("--weights", default="float32", metavar="KINDS", help="float32,int8,int4")
    parser.add_argument("--engine", default="onnxruntime", metavar="E", help="that runs the programs")
    parser.add_argument("--start", type=int, default=1200, help="messages of others that are learned first")
    parser.add_argument("--newest", type=int, default=300, help="messages of a user that a device keeps")
    parser.add_argument("--calls", type=int, default=4, help="of the program for a suggestion, at most")
    parser.add_argument("--no-typing", action="store_true", help="only recall and loss in subwords")
    parser.add_argument("--no-peers", action="store_true", help="without the keyboard and the trigram")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    begun = time.monotonic()

    def report(what: str, done: float | None) -> None:
        print(f"{time.monotonic() - begun:7.0f} s  {what}" + (f" ({done:.0%})" if done is not None else ""),
              file=sys.stderr, flush=True)  # fmt: skip

    run = LanguageModelRun(
        given.model, given.data, given.users, given.messages, "float32", given.engine, given.start, given.newest,
        given.calls, not given.no_typing,
    )  # fmt: skip
    found = run_all(run, given.out, weights=given.weights.split(","), peers=not given.no_peers, report=report)
    if given.json:
        print(json.dumps(found, indent=1))
        return
    for name, row in found["rows"].items():
        plain = {k: v for k, v in row.items() if isinstance(v, int | float)}
        print(name, json.dumps(plain))


if __name__ == "__main__":
    main()
