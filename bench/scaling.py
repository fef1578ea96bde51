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
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from export import spent

ENGINES = {"executorch": "android", "onnxruntime": "onnx"}


@dataclass(frozen=True)
class Size:
    """Of a model and its step; ``biased`` is 1 where q, k and v have a bias, as in Qwen2."""

    layers: int = 8
    width: int = 256
    inner: int = 704
    heads: int = 4
    key_heads: int = 2
    words: int = 8192
    length: int = 64
    biased: int = 0


#: Shapes of known models; their weights here are random.
SHAPES = {
    "smollm2-135m": Size(30, 576, 1536, 9, 3, 49_152, 256),
    "qwen2.5-0.5b": Size(24, 896, 4864, 14, 2, 151_936, 256, biased=1),
}


def _model(size: Size, folder: Path) -> None:
    """Write a model of this size with a tokenizer of bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    kind, made = (Qwen2Config, Qwen2ForCausalLM) if size.biased else (LlamaConfig, LlamaForCausalLM)
    config = kind(
        vocab_size=size.words,
        hidden_size=size.width,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    made(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    special = ["<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([], trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))


def _anonymous() -> int:
    """Bytes of the process's memory that no file backs."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


def _watched(steps: Callable[[], list[float]]) -> dict[str, Any]:
    """The most that steps add to the process's anonymous memory, and the shortest of them in milliseconds."""
    before = most = _anonymous()
    ended = threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.002):
            most = max(most, _anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        seconds = steps()
    finally:
        ended.set()
        thread.join()
    return {"peak_mb": round((most - before) / 1e6, 1), "step_ms": round(min(seconds) * 1e3, 1)}


def _timed(step: Callable[[], object], count: int) -> list[float]:
    found = []
    for _ in range(count + 1):
        began = time.perf_counter()
        step()
        found.append(time.perf_counter() - began)
    return found[1:]


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
        found = _watched(lambda: _timed(lambda: session.run("gradients", inputs), count))
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

    return _watched(lambda: _timed(step, count))


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
        print(json.dumps({"processor": _processor(), "runs": rows}, indent=1))


def _processor() -> str:
    with open("/proc/cpuinfo") as file:
        return next(
            (line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "unknown"
        )


if __name__ == "__main__":
    main()
