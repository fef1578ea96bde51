"""What weights of fewer bits cost and save: size of the files, time and memory of the programs, distance in loss.

    python bench/precision.py --json

The model is the decoder that the benchmarks train (``bench/gpt.py``), or one with a tied table. Each engine runs in a
process of its own on one thread; time is that of the processor, the least of some calls. Memory is what the process
has more than before it loaded the bundle, at its peak; mapped files count as far as they were read (Linux only).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import memory

WEIGHTS = ("float32", "int8", "int4")
ENGINES = {"onnxruntime": "onnx", "executorch": "android"}
CALLS = 7


def export(folder: Path, weights: str, tied: bool) -> dict[str, Any]:
    """A bundle for all engines: sizes in bytes, and the distance from the model's own weights."""
    import torch
    from gpt import seeded

    from pfl_exporters.export import export_bundle
    from pfl_mobile import LoRA
    from pfl_mobile.modules.personalize import personalize
    from pfl_mobile.plan.optimizers import Sgd
    from pfl_mobile.plan.phases import TrainPhase
    from pfl_mobile.plan.schema import Plan
    from pfl_mobile.programs.deployment import Deployment
    from pfl_mobile.programs.tasks import TokenTask

    backbone = seeded()
    if tied:
        backbone.output.weight = backbone.embed.weight
    tokens = torch.randint(0, 8000, (16, 20), generator=torch.Generator().manual_seed(1))
    model = personalize(backbone, [LoRA("blocks.*.[qv]", rank=4)])
    batch = {"tokens": tokens, "labels": tokens.roll(-1, 1), "weight": torch.ones(tokens.shape)}
    deployment = Deployment(
        "precision",
        model,
        TokenTask(8000),
        batch,
        Plan(phases=(TrainPhase(epochs=1, optimizer=Sgd(lr=0.1)),)),
        predict_batch={"tokens": tokens[:1], "position": torch.tensor([3])},
        weights=weights,
    )
    done = export_bundle(deployment, [*ENGINES.values(), "ios"], folder)
    entries = done.manifest.engines
    found: dict[str, Any] = {
        "bytes": {name: entry.measured["model_bytes"] for name, entry in entries.items()},
        "verified": done.errors,
    }
    if done.weights is not None:
        found |= {name: done.weights[name] for name in ("loss", "loss_float32", "output_rel_err")}
        found["rel_err"] = max(tensor["rel_err"] for tensor in done.weights["tensors"].values())
    return found


def measure(folder: str, engine: str) -> dict[str, Any]:
    """Seconds and bytes of the programs of a bundle, in this process."""
    from pfl_mobile.bundle.read import Bundle
    from pfl_mobile.engines import load_engine, open_session

    load_engine(engine)  # imported before memory is measured
    bundle = Bundle.open(folder)
    golden, values = bundle.golden(), bundle.values()
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew from here
    session = open_session(bundle, engine, threads=1, trusted=True)
    found: dict[str, Any] = {}
    for program in ("predict", "gradients"):
        inputs = {**golden[program].inputs, **values}
        inputs = {spec.name: inputs[spec.name] for spec in bundle.manifest.program(program).inputs}
        times = []
        for _ in range(CALLS):
            begun = time.process_time()
            session.run(program, inputs)
            times.append(time.process_time() - begun)
        found[f"{program}_ms"] = round(min(times) * 1000, 2)
    return {**found, "memory_mb": round((memory("VmHWM") - before) / 2**20, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tied", action="store_true", help="one table for embedding and output")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--measure", nargs=2, metavar=("BUNDLE", "ENGINE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(*given.measure)))
        return
    rows = {}
    with tempfile.TemporaryDirectory(prefix="pfl-bench-") as scratch:
        for weights in WEIGHTS:
            print(f"export with {weights}", file=sys.stderr)
            folder = Path(scratch) / weights
            rows[weights] = export(folder, weights, given.tied)
            for engine in ENGINES:
                command = [sys.executable, __file__, "--measure", str(folder), engine]
                out = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
                rows[weights][engine] = json.loads(out.splitlines()[-1])
    if given.json:
        print(json.dumps(rows, indent=2))
        return
    for weights, row in rows.items():
        print(weights, json.dumps(row))


if __name__ == "__main__":
    main()
