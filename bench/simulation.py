"""Client updates a second of four simulators, side by side on the same data, models, cohorts and order.

    python bench/simulation.py --json

The systems: ours, Apple's pfl-research, Flower's simulation, and a plain PyTorch loop, all with the same number of
processes of one thread. Each peer lives in an environment of its own, made at the first run and cached. Runs are
processes one after another; the systems take turns, so that noise of the machine meets all of them. The first round
of a run warms up; ``startup_s`` is from the start of the process to the first finished client update, ``peak_mb`` the
largest sum of the proportional set sizes of all its processes, ``updates_per_cpu_s`` the rate by processor time (for
machines that do other work as well). All systems write their model after the same number of rounds of weighted
FedAvg; ``max_model_diff`` is the largest difference of any value between any two, ``rounding_diff`` how far the plain
loop ends from itself when it begins one rounding beside the initial values.

``--tune`` measures several settings of every peer and takes the fastest; without it the settings are those that were
fastest when this was written. ``--population`` is a table of time and memory for 10^3 to 10^6 lazily generated clients.
Linux only.
"""

from __future__ import annotations

import argparse
import json
import sys

from arguments import names
from sim.driver import SYSTEMS, Options, compare, populations
from sim.report import population_table, table
from sim.workloads import WORKLOADS


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workloads", type=names(tuple(WORKLOADS)), default=tuple(WORKLOADS), metavar="A,B")
    parser.add_argument("--systems", type=names(SYSTEMS), default=SYSTEMS, metavar="A,B")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each system (default 3)")
    parser.add_argument("--seconds", type=float, default=3.0, help="shortest time of a run (default 3)")
    parser.add_argument(
        "--rounds", type=int, help="rounds until models are compared (default: the workload's)"
    )
    parser.add_argument(
        "--processes", type=int, help="training processes of every system (default: all cores)"
    )
    parser.add_argument("--quick", action="store_true", help="one short run of each: a check, not a result")
    parser.add_argument("--tune", action="store_true", help="measure the peers' settings first")
    parser.add_argument(
        "--population", action="store_true", help="instead: ours with 10^3 to 10^6 generated clients"
    )
    parser.add_argument("--json", action="store_true", help="print JSON only")
    options = parser.parse_args()
    chosen = Options(
        workloads=options.workloads,
        systems=options.systems,
        repeats=1 if options.quick else options.repeats,
        seconds=0.5 if options.quick else options.seconds,
        rounds=options.rounds,
        tune=options.tune,
        **({"processes": options.processes} if options.processes else {}),
    )

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    result = populations(chosen, say) if options.population else compare(chosen, say)
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        print(population_table(result) if options.population else table(result, chosen.systems))
    if result["errors"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
