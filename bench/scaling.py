"""What a language model costs as it grows: export time and memory, size of its files, memory and time of a step.

    python bench/scaling.py --json
    python bench/scaling.py --shape smollm2-135m --length 256 --memory 200MB

Models of Llama's kind with random weights, LoRA r=8 on q and v, one example; by default 4, 8 and 16 layers, two widths
and two lengths. The second line is SmolLM2-135M's shape. Each export is a process of its own (``pfl-export``), and so
is each measurement on an engine, on one core: memory is the most anonymous memory (the weights' file is mapped) that
loading its programs and its steps add to a process in which the runtime is loaded. PyTorch eager beside it: the same
model with peft's LoRA, float32, in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from export import spent
from llama import SHAPES, Size, config, write_folder
from measure import machine, timed, watched

ENGINES = {"executorch": "android", "onnxruntime": "onnx"}


def _model(size: Size, folder: Path) -> None:
    """Write a model of this size."""
    import torch
    from transformers import LlamaForCausalLM, Qwen2ForCausalLM

    torch.manual_seed(0)
    write_folder((Qwen2ForCausalLM if size.biased else LlamaForCausalLM)(config(size)), folder)


def _measured(step: Callable[[], object], count: int) -> dict[str, Any]:
    """The most that steps add to the process's anonymous memory, and the shortest of them but the first."""
    seconds, added = watched(lambda: timed(step, count + 1))
    return {"peak_mb": round(added.anonymous / 1e6, 1), "step_ms": round(min(seconds[1:]) * 1e3, 1)}


def _of_bundle(folder: str, engine: str, count: int) -> dict[str, Any]:
    import torch

    from pfl_mobile import Bundle
    from pfl_mobile.engines import ENGINES as known
    from pfl_mobile.engines import open_session

    torch.set_num_threads(1)
    bundle = Bundle.open(folder)
    inputs = bundle.golden()["gradients"].inputs
    for module in known.find(engine).runtime:
        importlib.import_module(module)
    planned = bundle.manifest.engine(engine).measured.get("planned_gradients_bytes")
    with open_session(
        bundle, engine, threads=1, trusted=True
    ) as session:  # loads the runtime, and no program yet
        found = _measured(lambda: session.run("gradients", inputs), count)
    apart = None if planned is None else round(planned / 1e6 / found["peak_mb"] - 1, 3)
    return found | {"planned_mb": None if planned is None else round(planned / 1e6, 1), "plan_off": apart}


def _of_eager(folder: str, length: int, count: int) -> dict[str, Any]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"])).eval()
    ids = torch.randint(0, model.config.vocab_size, (1, length))

    def step() -> None:
        model(ids, labels=ids, use_cache=False).loss.backward()
        model.zero_grad()

    return _measured(step, count)


def _alone(*arguments: object) -> dict[str, Any]:
    """A measurement in a process of its own, on one core."""
    core = next(iter(os.sched_getaffinity(0)))
    child = subprocess.run(
        [sys.executable, __file__, *map(str, arguments)],
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        check=False,
    )
    if child.returncode:
        raise SystemExit(f"a measurement failed:\n{child.stderr.decode(errors='replace')}")
    found: dict[str, Any] = json.loads(child.stdout)
    return found


def measured(size: Size, options: list[str], count: int) -> dict[str, Any]:
    """All figures of one size."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        _model(size, folder)
        found: dict[str, Any] = {"size": asdict(size), "options": options}
        found["eager"] = _alone("--child", "eager", folder, size.length, count)
        for engine, target in ENGINES.items():
            out = Path(scratch) / engine
            command = [
                str(Path(sys.executable).with_name("pfl-export")),
                f"hf:{folder}",
                "--lora",
                "q_proj,v_proj",
            ]
            command += [
                "--batch",
                "1",
                "--length",
                str(size.length),
                "--target",
                target,
                "--out",
                str(out),
                "--json",
            ]
            cost, said = spent([*command, *options], Path(scratch))
            done = json.loads(said)
            step = _alone("--child", engine, out, size.length, count)
            found[engine] = {
                "export": cost,
                "seconds": done["seconds"],
                "model_mb": round(done["engines"][engine]["model_bytes"] / 1e6, 1),
                "grad_max_rel_err": done["verified"][engine]["grad_max_rel_err"],
                **step,
                "of_eager": round(step["step_ms"] / found["eager"]["step_ms"], 3),
            }
    return found


def _sizes(given: argparse.Namespace) -> list[Size]:
    names = Size.__dataclass_fields__
    own = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    if own or given.shape:
        return [replace(SHAPES[given.shape] if given.shape else Size(), **own)]
    base = Size()
    wide = replace(base, width=512, inner=1408, heads=8, key_heads=4)
    return [replace(base, layers=4), base, replace(base, layers=16), wide, replace(base, length=256)]


def main() -> None:
    """Measure, and print."""
    if sys.argv[1:2] == ["--child"]:
        engine, folder, length, count = sys.argv[2:]
        of = (
            _of_eager(folder, int(length), int(count))
            if engine == "eager"
            else _of_bundle(folder, engine, int(count))
        )
        print(json.dumps(of))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in Size.__dataclass_fields__:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    parser.add_argument("--shape", choices=SHAPES, help="of a known model, with random weights")
    for name in ("memory", "weights"):
        parser.add_argument(f"--{name}", help="as pfl-export takes it")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    told = {f"--{name}": getattr(given, name) for name in ("memory", "weights")}
    options = [word for name, value in told.items() if value is not None for word in (name, value)]
    rows = []
    for size in _sizes(given):
        print(f"measuring {size}", file=sys.stderr)
        rows.append(measured(size, options, given.steps))
        if not given.json:
            print(json.dumps(rows[-1]))
    if given.json:
        print(json.dumps({"processor": machine()["processor"], "runs": rows}, indent=1))


if __name__ == "__main__":
    main()
