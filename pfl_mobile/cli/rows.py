"""Rows of one user for bundles that take arrays: from a ``.npz`` file, a recipe, a dataset or a study."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pfl_mobile.errors import DataError, UnknownNameError, near
from pfl_mobile.files.reading import open_bytes
from pfl_mobile.rows import outside_classes

if TYPE_CHECKING:
    from pfl_mobile.bundle.manifest import Manifest
    from pfl_mobile.cli.common import Reporter
    from pfl_mobile.data.populations import Population

Arrays = dict[str, np.ndarray]


def rows_of(manifest: Manifest, source: str, user: str, report: Reporter, *, others: bool = False) -> Arrays:
    """The rows of a user, oldest first.

    A ``.npz`` file has one array for each batch input of the ``evaluate`` program, all with the same first axis, and
    ``user``, the user of each row (may be left out when there is only one). ``weight`` may be left out: then
    each row counts 1. Anything else is what ``pfl compare`` takes: the users of a recipe's study, of a dataset, or of
    the study that ``file.py:function`` makes, with their rows as the study trains them, those to test on last.

    Dtypes are converted where no value changes kind (float64 to float32). Values that are not finite, labels that are
    no class, and negative weights are refused: engines differ in what they make of them.

    Args:
        manifest: of the bundle.
        source: the file, or the name.
        user: whose rows.
        report: told about progress.
        others: the rows of all users but this one.

    Raises:
        DataError: there are no such arrays, or they do not fit the bundle.
        UnknownNameError: there is no such user, or nothing has this name.
        ConfigError, UserCodeError, MissingDependencyError: the study cannot be made.
    """
    wanted = {s.name: s for s in manifest.batch_inputs("evaluate")}
    form = ", ".join(
        f"{n} {s.dtype}[rows{''.join(f', {d}' for d in s.shape[1:])}]" for n, s in wanted.items()
    )
    mend = f"bundle {manifest.name!r} takes rows of {form}: a .npz file with these and user [rows], or the name of a "
    mend += "dataset, a recipe or a study (study.py:study) that has such rows"
    if source.endswith(".npz") or os.path.isfile(source):
        arrays = _from_file(Path(source), mend)
        users = arrays.pop("user", None)
    else:
        arrays, users = _from_people(_people(source, mend, report), user, others), None
    count = min((len(a) for a in arrays.values() if a.ndim), default=0)
    if "weight" in wanted and "weight" not in arrays:
        arrays["weight"] = np.ones((count, *wanted["weight"].shape[1:]), np.float32)
    rows = {}
    for name, spec in wanted.items():
        if name not in arrays:
            raise DataError(f"{source} has no array {name!r}; {near(name, arrays)}", mend=mend)
        if not np.can_cast(arrays[name].dtype, spec.dtype, "same_kind"):
            raise DataError(f"{source}: {name!r} is {arrays[name].dtype}, not {spec.dtype}", mend=mend)
        rows[name] = arrays[name].astype(spec.dtype)
        if rows[name].ndim == 0 or len(rows[name]) != count or rows[name].shape[1:] != spec.shape[1:]:
            raise DataError(f"{source}: {name!r} has shape {list(rows[name].shape)}", mend=mend)
    _check_values(manifest, source, rows)
    if users is None:
        return rows
    if users.shape != (count,):
        raise DataError(f"{source}: 'user' has shape {list(users.shape)}, not [{count}]", mend=mend)
    names = users.astype(str)
    chosen = (names == user) != others
    if not chosen.any():
        which = "user but" if others else "user"
        raise UnknownNameError(f"{source} has no {which} {user!r}", mend=near(user, names.tolist()))
    return {name: value[chosen] for name, value in rows.items()}


def _from_file(path: Path, mend: str) -> Arrays:
    try:
        with open_bytes(path) as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}", mend=mend) from error
    except Exception as error:  # NumPy, zipfile and zlib share no base for what is not theirs
        raise DataError(f"{path} is not a .npz file of plain arrays", mend=mend) from error


def _people(source: str, mend: str, report: Reporter) -> Population:
    """The users of a study; of a dataset itself where no recipe serves it."""
    import pfl_recipes
    from pfl_mobile import data
    from pfl_mobile.cli.user_code import load_study
    from pfl_mobile.data.registry import DATASETS

    served = [*pfl_recipes.names(), *pfl_recipes.datasets()]
    if source in DATASETS and isinstance(data.find(source), data.Dataset):
        raise DataError(f"{source} is messages, not arrays", mend=mend)
    if source in DATASETS and source not in served:
        return data.population(source, progress=report)
    if source not in served and ":" not in source:
        raise UnknownNameError(
            f"{source!r} is no file here, no dataset and no recipe",
            mend=f"{near(source, [*data.names(), *served])}; {mend}",
        )
    report(f"load the users of {source}")
    return load_study(source).data


def _from_people(people: Population, user: str, others: bool) -> Arrays:
    ids = [people.id(index) for index in range(len(people))]
    if not others and user not in ids:
        raise UnknownNameError(f"{people.name} has no user {user!r}", mend=near(user, ids))
    chosen = [index for index, name in enumerate(ids) if (name == user) != others]
    parts = [part for index in chosen for part in (people.train(index), people.test(index))]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _check_values(manifest: Manifest, source: str, rows: dict[str, np.ndarray]) -> None:
    for name, value in rows.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            row = int(np.argwhere(~np.isfinite(value))[0][0])
            raise DataError(
                f"{source}: {name!r} is not finite in row {row}", mend="leave such rows out, or fill them in"
            )
    weight, labels, classes = rows.get("weight"), rows.get("labels"), manifest.task.vocabulary
    if weight is not None and (weight < 0).any():
        raise DataError(f"{source}: a weight is negative", mend="use weights of 0 or more")
    if classes is None or labels is None or labels.dtype.kind != "i":
        return
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        raise DataError(
            f"{source}: the label {labels[wrong][0]} is not in 0..{classes - 1}",
            mend=outside_classes(int(labels.min()), int(labels.max()), classes),
        )
