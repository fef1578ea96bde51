"""Run by test_kills.py: a device that is killed with SIGKILL at random moments and started again until it has done its
rounds. Prints a JSON summary.

    python -m tests.device.kill_loop ADDRESS DIRECTORY SEED
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

# Imported here, so that no child has to.
import httpx2  # noqa: F401

import pfl_mobile.privacy.noise  # noqa: F401
from tests.device.conftest import device


def child(address, folder):
    with device(folder, address, patience_s=5.0) as found:
        found.run()


def main(address, folder, seed):
    draw, kills = random.Random(seed), 0
    began = time.monotonic()
    while time.monotonic() - began < 60:
        pid = os.fork()
        if pid == 0:
            try:
                child(address, Path(folder))
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        deadline = time.monotonic() + draw.uniform(0.0, 0.3) * (1 + kills / 100)
        while time.monotonic() < deadline:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                assert status == 0, "the device failed"
                print(json.dumps({"kills": kills}))
                return
            time.sleep(0.0005)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        kills += 1
    raise AssertionError("it does not get on")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
