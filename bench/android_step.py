"""What the SDK adds to the engine's time in a step of training on the keyboard, and how long a suggestion takes.

    python bench/android_step.py --json

The keyboard has its real size, and weights that nobody trained. Kotlin on a JVM and Python run the same plan on the
same texts in turns, through ExecuTorch and through ONNX Runtime, on one core. On the JVM, ExecuTorch's official classes
run over the desktop runtime, as in the tests. ``overhead`` is what a step takes beyond the call of ``gradients``, as a
share of that call, in time of the processor, so that other work of the machine does not count.

The JVM begins anew each time and has a heap of no more than a phone's. Before the first word a user waits for
``jvm_ms``, ``open_ms`` (read, verify and unpack the bundle) and ``first_suggestion_ms`` (load engine and program,
suggest). ``golden_ms`` is the golden batch, which comes before the first training. ``suggestion_ms`` is of a later
word: tokenizer, ``predict`` and the choice of three words. Memory is that of the whole process.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sim.report import machine

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT / "android"))

from desktop import compiled_tests  # noqa: E402

ENGINES = ("executorch", "onnxruntime")
STEPS = 20
#: A phone gives an app at least this much heap.
HEAP = "192m"


def deployment() -> Any:
    """The keyboard, and a plan of so many steps of its optimizer."""
    import torch

    from pfl_mobile.modules.personalize import personalize
    from pfl_mobile.plan.optimizers import AdamW
    from pfl_mobile.plan.phases import TrainPhase
    from pfl_mobile.plan.schema import Plan
    from pfl_mobile.programs.deployment import Deployment, text_parts
    from pfl_mobile.programs.tasks import TokenTask
    from pfl_mobile.text.encoder import TextEncoder, WordTokenizer
    from pfl_recipes.keyboard.model import Keyboard
    from pfl_recipes.keyboard.recipe import KeyboardRecipe

    torch.manual_seed(0)
    torch.set_num_threads(1)
    recipe = KeyboardRecipe()
    words = " ".join(f"word{i}" for i in range(recipe.model.vocabulary))
    tokenizer = WordTokenizer.train([words], recipe.model.vocabulary)
    encoder = TextEncoder(tokenizer, recipe.model.length, recipe.model.vocabulary, recipe.slots)
    train = TrainPhase(group=("*lora*",), steps=STEPS, optimizer=AdamW(lr=recipe.lr), clip=1.0)
    return Deployment(
        name="keyboard",
        model=personalize(Keyboard(recipe.model).eval(), recipe.modules(), seed=0),
        task=TokenTask(recipe.model.vocabulary + recipe.slots, top_k=recipe.suggestions),
        plan=Plan(phases=(train,)),
        **text_parts(encoder, recipe.batch),
    )


def texts() -> list[str]:
    """Messages of nine words."""
    return [" ".join(f"word{(37 * i + 11 * j) % 4000}" for j in range(9)) for i in range(60)]


def exported() -> Path:
    """The bundle, exported once for as long as what makes it stays the same."""
    from pfl_exporters.export import export_bundle

    digest = hashlib.sha256()
    for package in ("torch", "executorch", "onnxruntime"):
        digest.update(importlib.metadata.version(package).encode() + b"\0")
    for folder in ("pfl_mobile", "exporters/pfl_exporters", "recipes/pfl_recipes/keyboard"):
        for source in sorted((PROJECT / folder).rglob("*.py")):
            digest.update(source.read_bytes() + b"\0")
    digest.update(Path(__file__).read_bytes())
    path = PROJECT / f"android/target/bench/keyboard-{digest.hexdigest()[:16]}.pflb"
    if not path.is_file():
        print("export the keyboard", file=sys.stderr)
        path.parent.mkdir(parents=True, exist_ok=True)
        made = path.with_name("made.pflb")
        made.unlink(missing_ok=True)
        export_bundle(deployment(), ["android", "onnx"], made)
        for old in path.parent.glob("keyboard-*.pflb"):
            old.unlink()
        made.rename(path)
    return path


class Timed:
    """A session that notes the seconds of each call: on the clock, and of the processor."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.taken: dict[str, list[tuple[float, float]]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, program: str, inputs: Any) -> Any:
        """Run a program."""
        start = time.perf_counter(), time.thread_time()
        found = self._session.run(program, inputs)
        self.taken.setdefault(program, []).append(since(start))
        return found


def since(start: tuple[float, float]) -> tuple[float, float]:
    """Seconds on the clock, and of the processor in this thread."""
    return time.perf_counter() - start[0], time.thread_time() - start[1]


def python(path: Path, engine: str) -> dict[str, float]:
    """Python's side."""
    from pfl_mobile.bundle import Bundle
    from pfl_mobile.engines import open_session
    from pfl_mobile.local.evaluation import text_encoder
    from pfl_mobile.local.trainer import LocalTrainer
    from pfl_mobile.plan.schema import Plan

    examples = texts()
    with Bundle.open(path) as bundle, open_session(bundle, engine, threads=1, trusted=True) as session:
        timed = Timed(session)
        steps: list[tuple[float, float]] = []
        for _ in range(2):  # the first pass warms up
            timed.taken.clear()
            steps.clear()
            last: tuple[float, float] | None = None

            def note(_: object) -> None:
                nonlocal last
                if last is not None:
                    steps.append(since(last))
                last = time.perf_counter(), time.thread_time()

            trainer = LocalTrainer(
                timed,
                Plan.load(bundle.plan_json()),
                bundle.manifest.tensors,
                bundle.values(),
                encoder=text_encoder(bundle),
            )
            trainer.personalize(examples[:-2], examples[-2:], on_progress=note)
        calls = timed.taken["gradients"][1:]
    if len(steps) != len(calls):
        raise AssertionError("a step has more than one call")
    added = [step - call for (_, step), (_, call) in zip(steps, calls, strict=True)]
    return {
        "steps": len(steps),
        "step_ms": 1e3 * statistics.median(step for step, _ in steps),
        "engine_ms": 1e3 * statistics.median(call for call, _ in calls),
        "overhead": statistics.median(added) / statistics.median(call for _, call in calls),
    }


def kotlin(path: Path, engine: str, folder: Path, classes: str) -> dict[str, float]:
    """Kotlin's side, in a JVM of its own."""
    from pfl_mobile.bundle import Bundle

    with Bundle.open(path) as bundle:
        (folder / "plan.json").write_text(json.dumps(json.loads(bundle.plan_json())))
    (folder / "texts.json").write_text(json.dumps(texts()))
    out = folder / f"{engine}.json"
    subprocess.run(
        [
            "java",
            f"-Xmx{HEAP}",
            f"-Dbridge={PROJECT / 'android/target/libpfl_desktop_bridge.so'}",
            "io.pflmobile.core.bench.StepBenchKt",
            *map(str, (path, folder / "plan.json", folder / "texts.json", engine, out)),
        ],
        check=True,
        timeout=600,
        stdout=sys.stderr,
        # not as an argument: ONNX Runtime 1.29 runs out of stack when the command line of its process is long
        env=os.environ | {"CLASSPATH": classes},
    )
    found: dict[str, float] = json.loads(out.read_text())
    return found


def main() -> None:
    """Run both sides in turns."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON only")
    parser.add_argument("--repeats", type=int, default=3, help="of each side; the median counts")
    arguments = parser.parse_args()

    found: dict[str, dict[str, list[dict[str, float]]]] = {e: {"kotlin": [], "python": []} for e in ENGINES}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        print("compile", file=sys.stderr)
        classes = compiled_tests()
        # before ExecuTorch makes its threads; the JVMs inherit it
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        path = exported()
        for repeat in range(arguments.repeats):
            for engine in ENGINES:
                print(f"repeat {repeat + 1} of {arguments.repeats}: {engine}", file=sys.stderr)
                found[engine]["kotlin"].append(kotlin(path, engine, folder, classes))
                found[engine]["python"].append(python(path, engine))
    middle = {
        engine: {
            side: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            for side, runs in sides.items()
        }
        for engine, sides in found.items()
    }
    report = {"machine": machine(), "cores": 1, "repeats": arguments.repeats, "engines": middle}
    if arguments.json:
        print(json.dumps(report, indent=1))
        return
    for engine, sides in middle.items():
        for side, row in sides.items():
            print(f"{engine:12} {side:7} " + "  ".join(f"{key} {value:.3f}" for key, value in row.items()))


if __name__ == "__main__":
    main()
