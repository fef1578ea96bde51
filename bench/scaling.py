"""What a language model costs as it grows: export time and memory, size of its files, memory and time of a step.

    python bench/scaling.py --json
    python bench/scaling.py --shape smollm2-135m --length 256 --memory 200MB
    python bench/scaling.py --write
    python bench/scaling.py --write --only int8 --only length-64

Models of Llama's kind with random weights, LoRA r=8 on q and v; by default 4, 8 and 16 layers, two widths and two
lengths, one example. The second line is SmolLM2-135M's shape. Each export is a process of its own (``pfl-export``), and
so is each measurement on an engine, on one core: memory is the most anonymous memory (the weights' file is mapped) that
loading its programs and its steps add to a process in which the runtime is loaded. PyTorch eager beside it: the same
model with peft's LoRA, float32, in a process of its own.

`--write` puts a table of batch, length, precision and what is computed again into bench/scaling.md
(`bench/scaling_page.py`). Its exports run two at a time and are kept in the cache folder of ``pfl`` (8 GB) for as long
as nothing of the exporter changes; `--only` measures rows whose names have all the parts that are given, the others
stay as they were measured. A page is of one processor; `--page FILE` writes that of another.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from export import spent
from llama import SHAPES, Size, config, write_folder
from measure import machine, timed, watched
from scaling_page import Cell, Kept, grid, page

from pfl_mobile.files.atomic import atomic_write

ENGINES = {"executorch": "android", "onnxruntime": "onnx"}
PAGE = Path(__file__).with_suffix(".md")
COMMAND = "python bench/scaling.py --write"
_OPTIONS = ("memory", "weights", "recompute")


def _model(size: Size, folder: Path) -> None:
    """Write a model of this size."""
    import torch
    from transformers import LlamaForCausalLM, Qwen2ForCausalLM

    torch.manual_seed(0)
    write_folder((Qwen2ForCausalLM if size.biased else LlamaForCausalLM)(config(size)), folder)


def _measured(begin: Callable[[], Callable[[], object]], count: int) -> dict[str, Any]:
    """The most that making a step and so many calls of it add to the process's anonymous memory, and the shortest of
    the calls but the first. What was freed before is given back first, or the steps would find their memory there."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    seconds, added = watched(lambda: timed(begin(), count + 1))
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
    with ExitStack() as open_until_the_end:

        def begin() -> Callable[[], object]:
            # what a session makes at once is part of it: ExecuTorch has the memory of all methods from here
            session = open_until_the_end.enter_context(open_session(bundle, engine, threads=1, trusted=True))
            return lambda: session.run("gradients", inputs)

        found = _measured(begin, count)
    apart = None if planned is None else round(planned / 1e6 / found["peak_mb"] - 1, 3)
    return found | {"planned_mb": None if planned is None else round(planned / 1e6, 1), "plan_off": apart}


def _of_eager(folder: str, length: int, batch: int, checkpointed: bool, count: int) -> dict[str, Any]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    # checkpoints are for training only; nothing of these models is different there
    model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"])).train(checkpointed)
    if checkpointed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids = torch.randint(0, model.config.vocab_size, (batch, length))

    def step() -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        model.zero_grad()

    return _measured(lambda: step, count)


def alone(*arguments: object) -> dict[str, Any]:
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


def _eager(folder: Path, size: Size, count: int, *, checkpointed: bool = False) -> dict[str, Any]:
    return alone("--child", "eager", folder, size.length, size.batch, int(checkpointed), count)


def _exported(
    folder: Path, size: Size, targets: str, out: Path, options: list[str]
) -> tuple[dict[str, float], dict[str, Any]]:
    """What an export cost, and what it said."""
    command = [str(Path(sys.executable).with_name("pfl-export")), f"hf:{folder}", "--lora", "q_proj,v_proj"]
    command += ["--batch", str(size.batch), "--length", str(size.length)]
    command += ["--target", targets, "--out", str(out), "--json"]
    cost, said = spent([*command, *options], folder.parent)
    return cost, json.loads(said)


def measured(size: Size, options: list[str], count: int) -> dict[str, Any]:
    """All figures of one size."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        _model(size, folder)
        found: dict[str, Any] = {"size": asdict(size), "options": options}
        found["eager"] = _eager(folder, size, count)
        for engine, target in ENGINES.items():
            out = Path(scratch) / engine
            cost, done = _exported(folder, size, target, out, options)
            step = alone("--child", engine, out, count)
            found[engine] = {
                "export": cost,
                "seconds": done["seconds"],
                "model_mb": round(done["engines"][engine]["model_bytes"] / 1e6, 1),
                "grad_max_rel_err": done["verified"][engine]["grad_max_rel_err"],
                **step,
                "of_eager": round(step["step_ms"] / found["eager"]["step_ms"], 3),
            }
    return found


def _export_kept(cell: Cell, kept: Kept, models: Path) -> None:
    """Export for all engines, where it is not in the cache."""
    options = ["--weights", cell.weights, "--recompute", cell.recompute]
    with kept.making(cell) as folder:
        cost, done = _exported(
            models / cell.shape, cell.size, ",".join(ENGINES.values()), folder / "bundle", options
        )
        errors = {engine: found["grad_max_rel_err"] for engine, found in done["verified"].items()}
        said = {"cost": cost, "file_mb": round(done["total_bytes"] / 1e6, 1), "errors": errors}
        (folder / "export.json").write_text(json.dumps(said))


def write(cells: list[Cell], only: list[str], count: int, jobs: int, place: Path) -> None:
    """Measure the chosen cells, and write the page of all that were ever measured with this code on this processor.

    Raises:
        SystemExit: no cell has such a name, or a measurement failed.
    """
    chosen = [cell for cell in cells if set(only) <= set(cell.name.split("/"))]
    if not chosen:
        names = ", ".join(cell.name for cell in cells)
        raise SystemExit(f"no row has all of {', '.join(only)} in its name; rows are {names}")
    began, here, kept = time.perf_counter(), machine(), Kept.of_this_code()
    done, total = 0, 0

    def say(what: str) -> None:
        nonlocal done
        done += 1
        passed = time.perf_counter() - began
        left = passed / done * (total - done)
        print(
            f"{passed:5.0f} s, about {left:.0f} s left: {done} of {total}, {what}",
            file=sys.stderr,
            flush=True,
        )

    missing = [cell for cell in chosen if not kept.has(cell)]
    groups = list(dict.fromkeys((cell.shape, cell.size) for cell in chosen))
    total = len(missing) + 2 * len(groups) + len(ENGINES) * len(chosen)
    with tempfile.TemporaryDirectory() as scratch:
        for shape in dict.fromkeys(cell.shape for cell in chosen):
            _model(next(cell.size for cell in chosen if cell.shape == shape), Path(scratch) / shape)
        with ThreadPoolExecutor(jobs) as pool:
            waiting = {pool.submit(_export_kept, cell, kept, Path(scratch)): cell for cell in missing}
            for each in as_completed(waiting):
                each.result()
                say(f"exported {waiting[each].name}")
        for shape, size in groups:
            eager: dict[str, Any] = {}
            for name, checkpointed in (("eager", False), ("checkpointed", True)):
                eager[name] = _eager(Path(scratch) / shape, size, count, checkpointed=checkpointed)
                say(f"{name} {shape} batch {size.batch} length {size.length}")
            for cell in chosen:
                if (cell.shape, cell.size) != (shape, size):
                    continue
                found: dict[str, Any] = {"machine": here, **eager}
                for engine in ENGINES:
                    found[engine] = alone("--child", engine, kept.folder(cell) / "bundle", count)
                    say(f"{engine} {cell.name}")
                kept.write(cell, found)
    rows = {cell: found for cell in cells if (found := kept.read(cell, here["processor"])) is not None}
    atomic_write(place, page(rows, len(cells) - len(rows), here, COMMAND).encode())


def _own(given: argparse.Namespace) -> dict[str, int]:
    """What is said of a size."""
    names = Size.__dataclass_fields__
    return {name: getattr(given, name) for name in names if getattr(given, name) is not None}


def _sizes(given: argparse.Namespace) -> list[Size]:
    own = _own(given)
    if own or given.shape:
        return [replace(SHAPES[given.shape] if given.shape else Size(), **own)]
    base = Size()
    wide = replace(base, width=512, inner=1408, heads=8, key_heads=4)
    return [replace(base, layers=4), base, replace(base, layers=16), wide, replace(base, length=256)]


def main() -> None:
    """Measure, and print."""
    if sys.argv[1:2] == ["--child"]:
        engine, folder, *numbers = sys.argv[2:]
        if engine == "eager":
            length, batch, checkpointed, count = map(int, numbers)
            of = _of_eager(folder, length, batch, bool(checkpointed), count)
        else:
            of = _of_bundle(folder, engine, int(numbers[0]))
        print(json.dumps(of))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in Size.__dataclass_fields__:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    parser.add_argument("--shape", choices=SHAPES, help="of a known model, with random weights")
    for name in _OPTIONS:
        parser.add_argument(f"--{name}", help="as pfl-export takes it")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    parser.add_argument(
        "--page", type=Path, default=PAGE, metavar="FILE", help="with --write: the page of another processor"
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PART",
        help="with --write: rows with this part of a name, as int8, length-64 or all",
    )
    parser.add_argument(
        "--jobs", type=int, default=2, help="with --write: exports at a time (5 GB each at most)"
    )
    given = parser.parse_args()
    told = {f"--{name}": getattr(given, name) for name in _OPTIONS}
    if given.write:
        if any(told.values()) or given.shape or _own(given):
            parser.error("--write measures rows of its own; choose among them with --only")
        write(grid(), given.only, given.steps, given.jobs, given.page)
        return
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
