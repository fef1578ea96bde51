"""One gradient step of the same models through pfl-mobile and through other ways to train on a device, side by side.

    python bench/peers.py --write

Time, memory, size of the files and error of the gradients, for an MLP, a small CNN, the decoder of ``train_step.py``,
and a language model of SmolLM2-135M's shape. Each peer lives in an environment of its own, made at the first run
(2.1 GB in all) and cached. What a peer cannot do is a row that says what it said. `--write` puts the tables into
bench/peers.md. Linux only; 12 GB of memory, most of it for TensorFlow's converter.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from arguments import names
from peer_systems.driver import Options, compare
from peer_systems.models import WORKLOADS
from peer_systems.report import page, tables
from peer_systems.systems import SYSTEMS

from pfl_mobile.files.atomic import atomic_write

PAGE = Path(__file__).with_suffix(".md")
COMMAND = "python bench/peers.py --write"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workloads", type=names(WORKLOADS), default=tuple(WORKLOADS), metavar="A,B")
    parser.add_argument("--systems", type=names(SYSTEMS), default=tuple(SYSTEMS), metavar="A,B")
    parser.add_argument("--rounds", type=int, default=Options.rounds, help="turns of each system")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    given = parser.parse_args()
    began = time.perf_counter()

    def say(text: str) -> None:
        print(f"{time.perf_counter() - began:5.0f} s  {text}", file=sys.stderr, flush=True)

    result = compare(Options(given.workloads, given.systems, given.rounds), say)
    result["seconds"] = round(time.perf_counter() - began, 1)
    if given.write:
        atomic_write(PAGE, page(result, COMMAND).encode())
    print(json.dumps(result, indent=1) if given.json else tables(result))


if __name__ == "__main__":
    main()
