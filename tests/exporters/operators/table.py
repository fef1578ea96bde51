"""Makes docs/operators.md: ``python -m tests.exporters.operators.table --write``.

Every case of `cases.py` is lowered alone and run by every engine; takes some ten minutes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import torch

from pfl_exporters.targets import resolve
from pfl_mobile.errors import PflError
from tests.exporters.operators.cases import CASES, Case
from tests.exporters.operators.check import TOLERANCE, checked

PAGE = Path(__file__).parents[3] / "docs" / "operators.md"
ENGINES = {"ExecuTorch": "android", "ONNX Runtime": "onnx", "Core ML (interpreted)": "ios"}
HEAD = """# Operators

Which of PyTorch's layers, functions and losses train on a phone: loss and the gradient of every input were computed by
each engine and compared with PyTorch's autograd. Numbers are the largest error, of a gradient relative to its largest
entry, of a loss to the sum of its terms; {tolerance} is allowed. **no** means that the export is refused, never that
something wrong is written. "Core ML (interpreted)" is this project's own interpreter of the saved package, on Linux.

What PyTorch decomposes into these is fine too. `pfl-export --check MODEL` looks up the operators of a whole model for
every target, in seconds, and names those that stand in the way by layer and line. `make operators` makes this page;
torch {torch}.
"""


def _cell(case: Case, engine: str) -> str:
    (target,) = resolve([ENGINES[engine]])
    target.load()
    try:
        with tempfile.TemporaryDirectory() as folder:
            error = checked(case).run(target, Path(folder))
    except PflError as refused:
        return f"**no** ({refused.code})"
    return f"{error:.0e}" if error <= TOLERANCE else f"**no** (error {error:.0e})"


def page(cases: Sequence[Case]) -> str:
    """The page as text."""
    lines = [HEAD.format(tolerance=f"{TOLERANCE:.0e}", torch=torch.__version__.split("+")[0])]
    done = 0
    for group, members in groupby(cases, key=lambda case: case.group):
        lines += [f"\n## {group}\n", f"| | {' | '.join(ENGINES)} |", "|---|" + "---|" * len(ENGINES)]
        for case in members:
            cells = [_cell(case, engine) for engine in ENGINES]
            lines.append(f"| `{case.name}` | {' | '.join(cells)} |")
            done += 1
            print(f"{done} of {len(cases)}: {' '.join(lines[-1].split())}", file=sys.stderr, flush=True)
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/operators.md instead of printing it")
    parser.add_argument("--only", default="", help="cases whose name has this text")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    text = page([case for case in CASES if asked.only in case.name])
    if asked.write:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
