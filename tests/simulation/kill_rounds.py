"""Run by test_rounds.py: kills runs of rounds with SIGKILL at random moments and resumes them, until they are done.

    python -m tests.simulation.kill_rounds FOLDER STRATEGY PROCESSES SEED

Prints a JSON summary; exits with an assertion when a run differs from one that nobody killed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from pfl_mobile.files.sealed import digest
from pfl_mobile.simulation.backend import LocalBackend
from pfl_mobile.strategies import create
from tests.simulation.small import rounds, setup

ROUNDS, RUNS = 12, 2


def study(strategy, backend, folder=None, **settings):
    given = setup(pause=0.001)
    return rounds(create(strategy), given, backend, rounds=ROUNDS, folder=folder, resume=True, **settings)


def result(run):
    """Everything that a run leaves, less the times."""
    states = {str(c): run.states.row(r).tobytes().hex() for c, r in zip(*run.states.mapping(), strict=True)}
    sets = {f"{s}/{n}": v for s, values in run.server.sets.items() for n, v in values.items()}
    history = [{**vars(record), "seconds": 0} for record in run.history]
    return json.loads(
        json.dumps([digest({**run.server.values, **sets}), run.server.numbers, states, history])
    )


def child(strategy, processes, folder, pipe, every):
    os.write(pipe, b"x")
    with LocalBackend(processes) as backend, study(strategy, backend, folder, checkpoint_every=every) as run:
        run.run()
    os._exit(0)


def main(folder, strategy, processes, seed):
    rng = random.Random(seed)
    began = time.perf_counter()
    with LocalBackend(processes) as backend, study(strategy, backend) as run:
        run.run()
        expected = result(run)
    usual = time.perf_counter() - began
    summary = {"kills": 0, "resumed": 0}
    for number in range(RUNS):
        place = Path(folder) / str(number)
        for _ in range(1000):
            started = (place / "checkpoint").exists()
            read, write = os.pipe()
            pid = os.fork()
            if pid == 0:
                child(strategy, processes, place, write, 1 + number)
            os.close(write)
            os.read(read, 1)
            os.close(read)
            time.sleep(rng.uniform(0.1, 0.7) * usual)
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            if os.WIFEXITED(status):
                break
            summary["kills"] += 1
            summary["resumed"] += started
        with LocalBackend(0) as backend, study(strategy, backend, place) as run:
            assert run.server.round == ROUNDS or number > 0
            run.run()
            assert result(run) == expected, "a resumed run differs"
    print(json.dumps(summary))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
