"""What weights of fewer bits cost the keyboard: size, and accuracy before and after personalization.

python -m pfl_recipes.keyboard.precision --data nus-sms --out out/precision --json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pfl_mobile import data

from .language_model import Report, compare_keyboard

#: Kinds of weights that are compared.
KINDS = ("float32", "int8", "int4")


def run(
    source: str, out: Path, users: int | None, messages: int, engine: str, report: Report
) -> dict[str, Any]:
    """The keyboard with each kind of weights, on the same users: see ``compare_keyboard``."""
    everybody = data.split(data.load(source, progress=report))
    chosen = data.Split(everybody.train, dict(list(everybody.test.items())[:users]))
    rows = {}
    for kind in KINDS:
        typed, figures = compare_keyboard(
            source, chosen, out, messages=messages, weights=kind, engine=engine, report=report
        )
        rows[kind] = {**typed.summary(), **figures}
    return rows


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m pfl_recipes.keyboard.precision")
    parser.add_argument("--data", default="nus-sms", metavar="SRC", help="dataset name or JSONL file")
    parser.add_argument("--out", default="out/precision", metavar="DIR", help="for the bundles")
    parser.add_argument("--users", type=int, help="test users; default: all")
    parser.add_argument("--messages", type=int, default=10, help="of each test user, that are typed")
    parser.add_argument("--engine", default="executorch", metavar="E", help="that runs the programs")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()

    def report(what: str, done: float | None) -> None:
        print(what + (f" ({done:.0%})" if done is not None else ""), file=sys.stderr, flush=True)

    rows = run(given.data, Path(given.out), given.users, given.messages, given.engine, report)
    print(json.dumps(rows, indent=1 if given.json else None))


if __name__ == "__main__":
    main()
