"""Rows of one user from a ``.npz`` file, for bundles that take arrays."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

import numpy as np

from pfl_mobile.errors import DataError, UnknownNameError, near

if TYPE_CHECKING:
    from pathlib import Path

    from pfl_mobile.bundle.manifest import Manifest


def rows_of_user(manifest: Manifest, path: Path, user: str | None) -> dict[str, np.ndarray]:
    """The rows of a user, oldest first.

    The file has one array for each batch input of the ``evaluate`` program, all with the same first axis, and
    ``user``, the user of each row (may be left out when there is only one). ``weight`` may be left out: then
    each row counts 1. Dtypes are converted where no value changes kind (float64 to float32). Values that are not
    finite, labels that are no class, and negative weights are refused: engines differ in what they make of them.

    Args:
        manifest: of the bundle.
        path: of the file.
        user: None for all rows.

    Raises:
        DataError: the file is not such a file.
        UnknownNameError: it has no rows of this user.
    """
    wanted = {s.name: s for s in manifest.batch_inputs("evaluate")}
    form = ", ".join(
        f"{n} {s.dtype}[rows{''.join(f', {d}' for d in s.shape[1:])}]" for n, s in wanted.items()
    )
    mend = f"bundle {manifest.name!r} takes a .npz file with {form} and user [rows]"
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}", mend=mend) from error
    except (
        OSError,
        ValueError,
        EOFError,
        TypeError,
        zipfile.BadZipFile,
    ) as error:  # TypeError: one .npy array
        raise DataError(f"{path} is not a .npz file of plain arrays", mend=mend) from error
    users = arrays.pop("user", None)
    count = min((len(a) for a in arrays.values() if a.ndim), default=0)
    if "weight" in wanted and "weight" not in arrays:
        arrays["weight"] = np.ones((count, *wanted["weight"].shape[1:]), np.float32)
    rows = {}
    for name, spec in wanted.items():
        if name not in arrays:
            raise DataError(f"{path} has no array {name!r}; {near(name, arrays)}", mend=mend)
        if not np.can_cast(arrays[name].dtype, spec.dtype, "same_kind"):
            raise DataError(f"{path}: {name!r} is {arrays[name].dtype}, not {spec.dtype}", mend=mend)
        rows[name] = arrays[name].astype(spec.dtype)
        if rows[name].ndim == 0 or len(rows[name]) != count or rows[name].shape[1:] != spec.shape[1:]:
            raise DataError(f"{path}: {name!r} has shape {list(rows[name].shape)}", mend=mend)
    _check_values(manifest, path, rows)
    if users is None or user is None:
        return rows
    if users.shape != (count,):
        raise DataError(f"{path}: 'user' has shape {list(users.shape)}, not [{count}]", mend=mend)
    names = users.astype(str)
    if user not in names:
        raise UnknownNameError(f"{path} has no user {user!r}", mend=near(user, names.tolist()))
    return {name: value[names == user] for name, value in rows.items()}


def _check_values(manifest: Manifest, path: Path, rows: dict[str, np.ndarray]) -> None:
    for name, value in rows.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            row = int(np.argwhere(~np.isfinite(value))[0][0])
            raise DataError(
                f"{path}: {name!r} is not finite in row {row}", mend="leave such rows out, or fill them in"
            )
    weight, labels, classes = rows.get("weight"), rows.get("labels"), manifest.task.vocabulary
    if weight is not None and (weight < 0).any():
        raise DataError(f"{path}: a weight is negative", mend="use weights of 0 or more")
    if classes is None or labels is None or labels.dtype.kind != "i":
        return
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        raise DataError(
            f"{path}: the label {labels[wrong][0]} is not in 0..{classes - 1}",
            mend="number the classes from 0; a row that must not count gets the weight 0",
        )
