"""Run by test_kills.py: starts children that train and save, kills them with SIGKILL at random moments, and
checks what they leave behind. Prints a JSON summary; exits with an assertion when something was lost.

    python -m tests.local.kill_loop DIRECTORY KILLS SEED
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
from pfl_mobile.local.state import ModelId, PersonalStateStore
from pfl_mobile.local.trainer import LocalTrainer
from pfl_mobile.rows import split_rows
from tests.local.fake import Linear, linear_rows, plan, sgd

TRAIN, HELD = split_rows(linear_rows(40), 0.2)
PLAN = plan(
    sgd(lr=0.02, steps=8, optimizer={"kind": "adamw", "lr": 0.01}),
    sgd(lr=0.02, steps=6, trains="mine"),
    guard={"tolerance": 1e9},
)


def trainer(checkpoint_every=None):
    return LocalTrainer(Linear(), PLAN, Linear.tensors, Linear().initial(), checkpoint_every=checkpoint_every)


def key(state):
    copies = {f"{c}/{n}": v for c, values in state.copies.items() for n, v in values.items()}
    return digest({**state.tensors, **copies})


def open_store(directory):
    return PersonalStateStore(directory, ModelId.of("m", "1", Linear.tensors), keep=3)


def child(directory, pipe):
    """Personalize again and again; report each adoption once it is done."""
    t = trainer(checkpoint_every=3)
    store = open_store(directory)
    os.write(pipe, b"start 0 0\n")
    while True:
        report = t.personalize(TRAIN, HELD, store)
        os.write(pipe, f"adopted {report.version} {report.resumed_at or 0}\n".encode())


def main(directory, kills, seed):
    rng = random.Random(seed)
    began = time.perf_counter()
    trainer(checkpoint_every=3).personalize(TRAIN, HELD, open_store(directory + "-timing"))
    usual = time.perf_counter() - began
    chain = {"shipped": 0}  # what an undisturbed device has after n runs
    reference, last = None, 0
    summary = {"kills": 0, "adopted": 0, "resumed": 0, "orphans": 0}
    for _ in range(kills):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            child(directory, write)
        os.close(write)
        os.read(read, 10)  # the child has begun
        time.sleep(rng.uniform(0, 2 * usual))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with os.fdopen(read) as pipe:
            lines = [line.split() for line in pipe.read().split("\n")[:-1]]
        adopted = [int(line[1]) for line in lines if line[0] == "adopted"]
        summary["resumed"] += sum(int(line[2]) > 0 for line in lines)
        loaded = open_store(directory).load()
        assert loaded.warnings == (), loaded.warnings
        infos = open_store(directory).versions()
        assert all(info.problem is None for info in infos), infos
        assert loaded.version >= max(adopted, default=0), (loaded.version, adopted)
        name = key(loaded.state) if loaded.state else "shipped"
        while name not in chain:
            assert len(chain) < last + len(adopted) + 3, "a state that no undisturbed device has"
            reference = trainer().personalize(TRAIN, HELD, reference).state
            chain[key(reference)] = len(chain)
        assert chain[name] >= last + len(adopted), "an adopted state was lost"
        last = chain[name]
        summary["orphans"] += any(info.version > loaded.version for info in infos)
        summary["kills"] += 1
    summary["adopted"] = last
    assert len(list(Path(directory).iterdir())) < 20, "leftovers pile up"
    print(json.dumps(summary))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
