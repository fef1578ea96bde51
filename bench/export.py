"""What an export costs: processor time of the whole command, of its imports and of its steps, and peak memory.

    python bench/export.py --json

Each export is a process of its own, as users run it, with the command's own report of its steps (seconds by the clock).
The models: those of README and docs/exporting.md, and DistilBERT in its real size (66 million parameters, random
weights) with LoRA r=8 on q and v.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_DISTILBERT = """
import torch
from torch import Tensor, nn
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from pfl_mobile import AdamW, ClassificationTask, Deployment, Guard, LoRA, Plan, TrainPhase, personalize


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = DistilBertForSequenceClassification(DistilBertConfig(num_labels=3))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.net(input_ids=tokens, attention_mask=mask).logits


def build() -> Deployment:
    torch.manual_seed(0)
    net = Classifier().eval()
    ids = torch.randint(5, 30000, (4, 64))
    batch = {"x": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(4) % 3, "weight": torch.ones(4)}
    plan = Plan(phases=(TrainPhase(epochs=1, optimizer=AdamW(lr=1e-3)),), guard=Guard(metric="top1", min_examples=1))
    task = ClassificationTask(3, inputs=("x", "attention_mask"))
    return Deployment("distilbert", personalize(net, [LoRA("*.[qv]_lin", rank=8)]), task, batch, plan)
"""


def models(folder: Path) -> dict[str, Path]:
    """A file for each model, by name."""
    found = {}
    for name, page in {"my_model": "README.md", "my_words": "docs/exporting.md"}.items():
        code = re.search(rf"```python\n# {name}\.py\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
        assert code is not None, name
        found[name] = folder / f"{name}.py"
        found[name].write_text(code[1])
    found["distilbert"] = folder / "distilbert.py"
    found["distilbert"].write_text(_DISTILBERT)
    return found


def spent(command: list[str], folder: Path) -> tuple[dict[str, float], bytes]:
    """Run a command alone: its processor time, time by the clock, peak memory and output."""
    began = time.perf_counter()
    with tempfile.TemporaryFile() as out:
        child = subprocess.Popen(command, cwd=folder, stdout=out, stderr=subprocess.PIPE)
        assert child.stderr is not None
        said = child.stderr.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{said.decode(errors='replace')}")
        out.seek(0)
        cost = {
            "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
            "wall_s": round(time.perf_counter() - began, 2),
            "peak_mb": round(usage.ru_maxrss / 1024),
        }
        return cost, out.read()


def measure(name: str, file: Path, targets: str, folder: Path) -> dict[str, Any]:
    """One export."""
    code = "from pfl_exporters.cli import command; command()"
    place = folder / f"{name}-{targets.replace(',', '-')}"
    options = [f"{file}:build", "--target", targets, "--out", str(place), "--json"]
    cost, out = spent([sys.executable, "-c", code, *options], folder)
    report = json.loads(out)
    return {
        "model": name,
        "targets": targets,
        **cost,
        "steps_wall_s": report["seconds"],
        "bytes": report["total_bytes"],
    }


def imports(targets: str, folder: Path) -> dict[str, float]:
    """What importing the tools costs, which every export does."""
    code = (
        "import os; from pfl_exporters.lowering.collecting import never; never().__enter__(); "
        "from pfl_exporters.targets import resolve; import pfl_exporters.export; "
        f"[t.load() for t in resolve({targets.split(',')!r})]; os._exit(0)"
    )
    return spent([sys.executable, "-c", code], folder)[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="my_model,my_words,distilbert")
    parser.add_argument("--targets", nargs="+", default=["all", "android", "ios", "onnx"])
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="pfl-bench-") as scratch:
        folder = Path(scratch)
        known = models(folder)
        for targets in given.targets:
            rows.append({"model": None, "targets": targets, **imports(targets, folder)})
            for name in given.models.split(","):
                print(f"{name}: {targets}", file=sys.stderr)
                rows.append(measure(name, known[name], targets, folder))
    if given.json:
        print(json.dumps({"runs": rows}, indent=2))
        return
    for row in rows:
        what = f"{row['model'] or 'imports alone':14} {row['targets']:10}"
        print(
            f"{what} {row['cpu_s']:7.1f} s CPU {row['wall_s']:7.1f} s {row['peak_mb']:6} MB",
            row.get("steps_wall_s", ""),
        )


if __name__ == "__main__":
    main()
