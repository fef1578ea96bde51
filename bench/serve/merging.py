"""One merge of n updates, alone in its process, so that its peak memory is its own.

    python -m serve.merging ours FOLDER REPEATS       from files, as the server merges them
    python serve/merging.py flower FOLDER REPEATS     Flower's FedAvg, in Flower's environment, from bytes in memory
    python serve/merging.py flower_arrays ...         the sum in it alone, from arrays in memory

All read ``updates/*.bin`` (float32) and weigh by ``weights.json``. Prints JSON: ``seconds`` (best), ``gb_per_s``
(bytes of updates), ``peak_mb``, and writes the mean for comparison.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

#: That the server sums with.
THREADS = 2


def ours(paths: list[Path], weights: list[int]) -> Callable[[], np.ndarray]:
    """The server's: rows that are files, through the strategy's merge."""
    from pfl_mobile.merge.update_rows import FileRows, RowFile
    from pfl_mobile.merge.updates import Updates
    from pfl_mobile.plan.upload import UpdateLayout
    from pfl_mobile.strategies.fedavg import FedAvg
    from pfl_mobile.strategies.state import Server

    size = paths[0].stat().st_size // 4
    table = (_Tensor("w", (size,)),)

    def merge() -> np.ndarray:
        server = Server(table, len(paths), {"w": np.zeros(size, np.float32)})  # type: ignore[arg-type]
        with FileRows([RowFile(p) for p in paths], size) as rows:
            count = len(paths)
            updates = Updates(
                UpdateLayout({"w": (size,)}),
                rows,
                list(range(count)),
                np.asarray(weights, np.int64),
                np.ones(count, np.int64),
                {},
                [],
                count,
                threads=THREADS,
            )
            FedAvg().merge(server, updates)
        return server.values["w"]

    return merge


class _Tensor:
    """A shared tensor of a table."""

    role, update, dtype, module = "shared", "gradient", "float32", None

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name, self.shape = name, shape


def flower(paths: list[Path], weights: list[int]) -> Callable[[], np.ndarray]:
    """Flower's ``FedAvg.aggregate_fit``, its defaults, on what its server holds: the updates as bytes in memory."""
    from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
    from flwr.server.strategy import FedAvg

    def result(path: Path, weight: int) -> Any:
        parameters = ndarrays_to_parameters([np.fromfile(path, np.float32)])
        return None, FitRes(Status(Code.OK, ""), parameters, weight, {})

    strategy, results = FedAvg(), [result(p, w) for p, w in zip(paths, weights, strict=True)]

    def merge() -> np.ndarray:
        parameters, _ = strategy.aggregate_fit(2, results, [])
        return parameters_to_ndarrays(parameters)[0]

    return merge


def flower_arrays(paths: list[Path], weights: list[int]) -> Callable[[], np.ndarray]:
    """Flower's ``aggregate`` alone, on arrays that are in memory already."""
    from flwr.server.strategy.aggregate import aggregate

    results = [([np.fromfile(p, np.float32)], w) for p, w in zip(paths, weights, strict=True)]
    return lambda: aggregate(results)[0]


def memory_bandwidth() -> float:
    """GB a second of one thread that adds up two arrays into a third, far larger than the caches (STREAM's add)."""
    a, b, c = (np.ones(32_000_000, np.float32) for _ in range(3))
    best = 1e9
    for _ in range(7):
        began = time.perf_counter()
        np.add(a, b, out=c)
        best = min(best, time.perf_counter() - began)
    return 3 * a.nbytes / best / 1e9


def peak_mb() -> float:
    """Largest resident memory of this process."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1000 if found else float("nan")


def main(system: str, folder: Path, repeats: int) -> dict[str, Any]:
    """Run one system."""
    paths = sorted((folder / "updates").glob("*.bin"))
    weights = json.loads((folder / "weights.json").read_text())[: len(paths)]
    merge = {"ours": ours, "flower": flower, "flower_arrays": flower_arrays}[system](paths, weights)
    before, times = peak_mb(), []
    for _ in range(repeats):
        began = time.perf_counter()
        mean = merge()
        times.append(time.perf_counter() - began)
    peak = peak_mb()
    mean.astype(np.float32).tofile(folder / f"mean-{system}.bin")
    total = sum(p.stat().st_size for p in paths)
    found = {
        "seconds": min(times),
        "gb_per_s": total / min(times) / 1e9,
        "peak_mb": peak,
        "before_mb": before,
    }
    if system == "ours":
        found["memory_bandwidth_gb_per_s"] = memory_bandwidth()
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
