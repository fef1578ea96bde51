"""The pFedMe authors' table of Synthetic(0.5, 0.5), run here: ``python -m pfl_recipes.synthetic.reference``.

Setting: 100 users, 10 in a round, 600 rounds, multinomial logistic regression, batches of 20, and in a round 20
steps of FedAvg or Per-FedAvg, or pFedMe's R = 20 mini-batches with K = 5 steps each. How to measure is the
program's way too, where it differs from what the strategies do by themselves. ``REFERENCE.md`` beside this file
says what follows it, what does not, and what came out.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing.queues import SimpleQueue
from typing import Annotated, Any

import numpy as np
import torch
import typer

from pfl_mobile.cli.common import Json, Reporter, console, print_json, run, table
from pfl_mobile.data.populations import Population

from .published import BATCH, METHODS, ROUNDS, STEPS, TAIL, USERS_IN_ROUND, run_method

#: Points by which a figure may miss the reference.
TOLERANCE = 1.5

#: Figures, in the order they are shown: what it is, and the reference in percent where there is one.
FIGURES: Mapping[str, tuple[str, float | None]] = {
    "fedavg": ("FedAvg", 76.44),
    "per_fedavg": ("Per-FedAvg, on test batches", 79.27),
    "pfedme_personal": ("pFedMe, personalized w_i", 82.35),
    "pfedme_global": ("pFedMe, global", 77.16),
    "per_fedavg_train": ("Per-FedAvg, on training batch", None),
    "per_fedavg_global": ("Per-FedAvg, not adapted", None),
    "pfedme_theta": ("pFedMe, personalized theta_i", None),
}


def run_all(
    seeds: Sequence[int],
    *,
    rounds: int = ROUNDS,
    processes: int = 2,
    population: Population | None = None,
    report: Callable[[str, float], None],
) -> dict[str, list[list[float]]]:
    """All strategies with all seeds.

    Args:
        seeds: one run of each strategy for each.
        rounds: as in ``run_method``.
        processes: runs at a time; 0 for one after the other in this process.
        population: as in ``run_method``.
        report: ``(what, fraction done)``.

    Returns:
        For each figure and seed, the last rounds' values.
    """
    jobs = [(name, seed) for name in METHODS for seed in seeds]
    found: dict[tuple[str, int], dict[str, list[float]]] = {}
    done = dict.fromkeys(jobs, 0.0)

    def say() -> None:
        report(f"{len(found)} of {len(jobs)} runs finished", sum(done.values()) / len(jobs))

    if not processes:
        for job in jobs:

            def progress(fraction: float, job: tuple[str, int] = job) -> None:
                done[job] = fraction
                say()

            found[job] = run_method(*job, rounds=rounds, population=population, progress=progress)
    else:
        context = multiprocessing.get_context("spawn")
        told: SimpleQueue[tuple[tuple[str, int], float]] = context.SimpleQueue()
        with ProcessPoolExecutor(processes, context, _begin, (told,)) as pool:
            waiting = {pool.submit(_job, job, rounds, population): job for job in jobs}
            while waiting:
                ready, _ = wait(waiting, timeout=1.0, return_when=FIRST_COMPLETED)
                while not told.empty():
                    job, fraction = told.get()
                    done[job] = fraction
                for one in ready:
                    found[waiting.pop(one)] = one.result()
                say()
    return {
        figure: [found[name, seed][figure] for seed in seeds]
        for figure in FIGURES
        for name in METHODS
        if figure in found[name, seeds[0]]
    }


_told: SimpleQueue[tuple[tuple[str, int], float]] | None = None


def _begin(told: SimpleQueue[tuple[tuple[str, int], float]]) -> None:
    """In a worker: one thread, as there is a process a core."""
    global _told
    _told = told
    warnings.filterwarnings("ignore", module=r"torch\.")
    torch.set_num_threads(1)


def _job(job: tuple[str, int], rounds: int, population: Population | None) -> dict[str, list[float]]:
    told, every = _told, max(rounds // 50, 1)
    assert told is not None

    def progress(fraction: float) -> None:
        if round(fraction * rounds) % every == 0:
            told.put((job, fraction))

    return run_method(*job, rounds=rounds, population=population, progress=progress)


def summary(found: Mapping[str, Sequence[Sequence[float]]]) -> list[dict[str, Any]]:
    """One record a figure.

    ``reproduced`` is the mean over seeds of the last round, ``low`` and ``high`` its range, ``moves`` the standard
    deviation over the last rounds, mean over seeds. ``within`` compares ``reproduced`` with the reference.
    """
    records = []
    for figure, (label, reference) in FIGURES.items():
        if figure not in found:
            continue
        last = np.array([one[-1] for one in found[figure]])
        mean = float(last.mean())
        difference = None if reference is None else mean - reference
        records.append(
            {
                "figure": figure,
                "label": label,
                "reference": reference,
                "reproduced": mean,
                "difference": difference,
                "within": None if difference is None else abs(difference) <= TOLERANCE,
                "low": float(last.min()),
                "high": float(last.max()),
                "moves": float(np.mean([np.std(one) for one in found[figure]])),
                "seeds": last.tolist(),
            }
        )
    return records


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, help="Runs of each strategy, with seeds 0, 1, ...")
    ] = 3,
    rounds: Annotated[int, typer.Option("--rounds", min=2, help="Rounds; the reference has 600.")] = ROUNDS,
    processes: Annotated[
        int, typer.Option("--processes", min=0, help="Runs at a time; 0 for one after the other, here.")
    ] = 2,
    as_json: Json = False,
) -> None:
    """FedAvg, Per-FedAvg and pFedMe on Synthetic(0.5, 0.5) beside the authors' figures."""
    began = time.perf_counter()
    with Reporter() as report:
        report.note(
            f"{seeds} seed(s), {rounds} rounds, 100 users, {USERS_IN_ROUND} a round, batches of {BATCH}, {STEPS} steps"
        )
        found = run_all(range(seeds), rounds=rounds, processes=processes, report=report)
    records, seconds = summary(found), time.perf_counter() - began
    if as_json:
        print_json(
            {"rounds": rounds, "seeds": seeds, "tolerance": TOLERANCE, "seconds": seconds, "figures": records}
        )
        return
    console().print(_table(records, rounds))
    console().print(
        "Percent of all users' test examples in the last round, mean over seeds and its range; "
        f"moves: standard deviation over the last {TAIL} rounds. {seconds:.0f} s."
    )


def _table(records: Sequence[Mapping[str, Any]], rounds: int) -> Any:
    columns = ["", "reference", "here", "over seeds", "moves", "off by", f"in {TOLERANCE}"]
    rows = []
    for r in records:
        line = [
            r["label"],
            None,
            f"{r['reproduced']:.2f}",
            f"{r['low']:.2f} to {r['high']:.2f}",
            f"{r['moves']:.2f}",
        ]
        line += [None, None]
        if r["reference"] is not None:
            line[1], line[5] = f"{r['reference']:.2f}", f"{r['difference']:+.2f}"
            line[6] = "yes" if r["within"] else "no"
        rows.append(line)
    title = "" if rounds == ROUNDS else f"{rounds} rounds; the reference has {ROUNDS}"
    return table(columns, rows, title=title, right=(1, 2, 3, 4, 5))


if __name__ == "__main__":
    sys.exit(run(app, "python -m pfl_recipes.synthetic.reference"))
