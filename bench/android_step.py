"""What the SDK adds to the engine's time in a step of training on the keyboard: Kotlin on a JVM, and Python.

    python bench/android_step.py --json

The keyboard has its real size, and weights that nobody trained. Each side runs the same plan on the same texts through
ExecuTorch and through ONNX Runtime, one thread each, and times the whole step and the engine's part of it. On the JVM,
ExecuTorch's official classes run over the desktop runtime, as in the tests. A suggestion is tokenizer and ``predict``;
the first one includes opening the bundle and the engine.
"""

from __future__ import annotations

import argparse
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
ENGINES = ("executorch", "onnxruntime")
STEPS = 60


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


class Timed:
    """A session that notes the seconds of each call."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.taken: dict[str, list[float]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, program: str, inputs: Any) -> Any:
        """Run a program."""
        start = time.perf_counter()
        found = self._session.run(program, inputs)
        self.taken.setdefault(program, []).append(time.perf_counter() - start)
        return found


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
        steps: list[float] = []
        for _ in range(2):  # the first pass warms up
            timed.taken.clear()
            steps.clear()
            last = 0.0

            def note(_: object) -> None:
                nonlocal last
                now = time.perf_counter()
                if last:
                    steps.append(now - last)
                last = now

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
    added = [step - call for step, call in zip(steps, calls, strict=True)]
    return {
        "steps": len(steps),
        "step_ms": 1e3 * statistics.median(steps),
        "engine_ms": 1e3 * statistics.median(calls),
        "overhead": statistics.median(added) / statistics.median(calls),
    }


def kotlin(path: Path, engine: str, folder: Path) -> dict[str, float]:
    """Kotlin's side, in a JVM of its own."""
    from pfl_mobile.bundle import Bundle

    with Bundle.open(path) as bundle:
        (folder / "plan.json").write_text(json.dumps(json.loads(bundle.plan_json())))
    (folder / "texts.json").write_text(json.dumps(texts()))
    out = folder / f"{engine}.json"
    classpath = (folder / "classpath").read_text()
    test = PROJECT / "android/core/target"
    subprocess.run(
        [
            "java",
            f"-Dbridge={PROJECT / 'android/target/libpfl_desktop_bridge.so'}",
            "io.pflmobile.core.bench.StepBenchKt",
            *map(str, (path, folder / "plan.json", folder / "texts.json", engine, out)),
        ],
        check=True,
        stdout=sys.stderr,
        # not as an argument: ONNX Runtime 1.29 runs out of stack when the command line of its process is long
        env=os.environ
        | {"CLASSPATH": os.pathsep.join([str(test / "test-classes"), str(test / "classes"), classpath])},
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

    from pfl_exporters.export import export_bundle

    found: dict[str, dict[str, list[dict[str, float]]]] = {e: {"kotlin": [], "python": []} for e in ENGINES}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        print("compile", file=sys.stderr)
        maven = ["mvn", "-q", "-B", "-pl", "core"]
        subprocess.run(
            [
                *maven,
                "test-compile",
                "dependency:build-classpath",
                "-DincludeScope=test",
                f"-Dmdep.outputFile={folder / 'classpath'}",
            ],
            check=True,
            cwd=PROJECT / "android",
            stdout=sys.stderr,
        )
        print("export the keyboard", file=sys.stderr)
        path = folder / "keyboard.pflb"
        export_bundle(deployment(), ["android", "onnx"], path)
        for repeat in range(arguments.repeats):
            for engine in ENGINES:
                print(f"repeat {repeat + 1} of {arguments.repeats}: {engine}", file=sys.stderr)
                found[engine]["kotlin"].append(kotlin(path, engine, folder))
                found[engine]["python"].append(python(path, engine))
    middle = {
        engine: {
            side: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            for side, runs in sides.items()
        }
        for engine, sides in found.items()
    }
    report = {"machine": machine(), "threads": 1, "repeats": arguments.repeats, "engines": middle}
    if arguments.json:
        print(json.dumps(report, indent=1))
        return
    for engine, sides in middle.items():
        for side, row in sides.items():
            print(f"{engine:12} {side:7} " + "  ".join(f"{key} {value:.3f}" for key, value in row.items()))


if __name__ == "__main__":
    main()
