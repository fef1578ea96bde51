"""What recurrent layers cost by the length of their rows: trace, lowering, file, and a step beside PyTorch's own.

    python bench/recurrent.py --json
    python bench/recurrent.py --kinds lstm --steps 50 500 --engines onnx

A classifier of rows of 32 numbers, one layer of 64, batch of 8: frozen with a trained head, and with LoRA r=4 on the
recurrent layer too. ``nodes`` is the size of the graph of ``gradients``. Times are of the processor, on one thread,
without imports; a step is the median of seven, forward, loss and backward, and PyTorch's the same in eager mode.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from measure import machine
from torch import Tensor, nn

from pfl_exporters.export import open_lowered, program_specs
from pfl_exporters.lowering.quiet import quiet
from pfl_exporters.targets import resolve
from pfl_mobile import ClassificationTask, Head, LoRA, personalize
from pfl_mobile.engines.compare import relative_error
from pfl_mobile.programs.trace import gradients, trace_programs, trained_names

WIDTH, HIDDEN, BATCH, CLASSES, RUNS = 32, 64, 8, 5, 7
KINDS: dict[str, Callable[..., nn.Module]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


class Classifier(nn.Module):
    """Last step of a recurrent layer, and a linear layer."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.rnn = KINDS[kind](WIDTH, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of rows [B, T, numbers]."""
        out: Tensor = self.head(self.rnn(x)[0][:, -1])
        return out


def median_ms(run: Callable[[], Any]) -> float:
    """Processor time of a call, the median after one that does not count."""
    run()
    taken = []
    for _ in range(RUNS):
        began = time.process_time()
        run()
        taken.append(time.process_time() - began)
    return round(1000 * statistics.median(taken), 2)


def measured(kind: str, steps: int, adapted: bool, engines: Sequence[str]) -> dict[str, Any]:
    """One model with rows of one length."""
    torch.manual_seed(0)
    modules = [Head("head"), *([LoRA("rnn", rank=4)] if adapted else [])]
    model = personalize(Classifier(kind).eval(), modules)
    task = ClassificationTask(CLASSES)
    batch = {
        "x": torch.randn(BATCH, steps, WIDTH),
        "labels": torch.arange(BATCH) % CLASSES,
        "weight": torch.ones(BATCH),
    }
    values, trained = model.values(), trained_names(model)

    def step() -> dict[str, Tensor]:
        return gradients(model, task, batch, values, trained)

    began = time.process_time()
    programs = trace_programs(model, task, batch, {"x": batch["x"][:1]})
    row: dict[str, Any] = {
        "kind": kind,
        "steps": steps,
        "trained": "LoRA and head" if adapted else "head",
        "trace_s": round(time.process_time() - began, 2),
        "nodes": len(programs["gradients"].graph.graph.nodes),
        "pytorch_step_ms": median_ms(step),
        "engines": {},
    }
    want = {name: value.numpy() for name, value in step().items()}
    inputs = {name: value.detach().numpy() for name, value in programs["gradients"].inputs.items()}
    for name in engines:
        (target,) = resolve([name])
        target.load()
        with tempfile.TemporaryDirectory() as folder:
            began = time.process_time()
            with quiet():
                lowered = target.lower(programs, Path(folder), lambda _: None)
            taken = time.process_time() - began
            with open_lowered(target, lowered, program_specs(programs)) as session:
                got = session.run("gradients", inputs)
                row["engines"][name] = {
                    "lower_s": round(taken, 2),
                    "file_kb": round(sum(p.stat().st_size for p in lowered.paths.values()) / 1024),
                    "step_ms": median_ms(lambda session=session: session.run("gradients", inputs)),
                    "largest_error": float(f"{max(relative_error(got[n], want[n]) for n in want):.1e}"),
                }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--steps", nargs="+", type=int, default=[50, 500])
    parser.add_argument("--engines", nargs="+", default=["android", "onnx"])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for kind in asked.kinds:
        for steps in asked.steps:
            for adapted in (False, True):
                rows.append(measured(kind, steps, adapted, asked.engines))
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    if asked.json:
        print(json.dumps({"machine": machine(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
