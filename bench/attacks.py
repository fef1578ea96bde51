"""Attacks on federated rounds: what robust merge rules keep of the accuracy that averaging loses.

    python bench/attacks.py --json

Sign flips, scaled model poisoning, a backdoor and flipped labels, by 10, 20 and 30 % of the users, against every
merge rule, on handwritten digits that are downloaded once (`pfl data get mnist`). Accuracy is on clean test images
of all users. `--write` puts the table into bench/attacks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from arguments import names
from attack.report import collect, page, table
from attack.run import RULES, Settings, cases, run_all
from attack.threats import ATTACKS

from pfl_mobile.files.atomic import atomic_write

PAGE = Path(__file__).with_suffix(".md")
COMMAND = "python bench/attacks.py --write"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    attacks, rules = list(ATTACKS), list(RULES)
    parser.add_argument("--attacks", type=names(attacks), default=attacks, metavar="A,B")
    parser.add_argument("--rules", type=names(rules), default=rules, metavar="A,B")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each (default 3)")
    parser.add_argument("--rounds", type=int, default=Settings.rounds)
    parser.add_argument("--alpha", type=float, default=Settings.alpha, help="how alike users are")
    parser.add_argument("--dataset", default=Settings.dataset, help="mnist or fashion-mnist")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    options = parser.parse_args()
    settings = Settings(dataset=options.dataset, rounds=options.rounds, alpha=options.alpha)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    began = time.perf_counter()
    planned = cases(options.attacks, options.rules, options.seeds)
    found = list(run_all(settings, planned, options.processes, say))
    result = collect(settings, found, time.perf_counter() - began)
    if options.write:
        atomic_write(PAGE, page(result, COMMAND).encode())
    print(json.dumps(result, indent=1) if options.json else table(result))


if __name__ == "__main__":
    main()
