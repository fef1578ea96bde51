"""LoRA tensors to and from a Hugging Face peft adapter folder.

An adapter folder holds ``adapter_config.json`` and ``adapter_model.safetensors``;
``peft.PeftModel.from_pretrained(backbone, folder)`` then gives the personalized model's output. Only the LoRA
part of a personal state has a counterpart in peft. Plain numpy: neither torch nor peft is imported here.
"""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from pfl_mobile.atomic import atomic_write, disk_errors
from pfl_mobile.errors import ConfigError, DataError, TensorMismatchError, near
from pfl_mobile.reading import read_json

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_REPEATED_GROUP = re.compile(r"\)[*+?{]")
_REPEATS = re.compile(r"[*+{]")
_KEY = re.compile(
    r"(?:base_model\.model\.)?(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B)(\.weight)?"
)


def _layers(values: Mapping[str, Any], owners: Mapping[str, str], modules: Iterable[Any]) -> dict[str, Any]:
    """``path -> (rank, alpha, A, B, is_embedding)`` of every LoRA layer."""
    settings = {m["name"]: m["config"] for m in modules if m["kind"] == "lora"}
    found = {}
    for name in sorted(values):
        path, _, leaf = name.rpartition(".")
        if leaf != "lora_A" or owners.get(name) not in settings:
            continue
        if f"{path}.lora_B" not in values:
            raise TensorMismatchError(f"{path}.lora_B is missing", mend="export all values of the state")
        config = settings[owners[name]]
        rank = int(config["rank"])
        alpha = rank if config.get("alpha") is None else config["alpha"]
        a, b = (np.asarray(values[f"{path}.{leaf}"], dtype=np.float32) for leaf in ("lora_A", "lora_B"))
        embedding = a.ndim == 2 and a.shape[0] != rank
        found[path] = (rank, float(alpha), a, b, embedding)
    return found


def export_adapter(
    folder: str | os.PathLike[str],
    values: Mapping[str, Any],
    owners: Mapping[str, str],
    modules: Iterable[Mapping[str, Any]],
    *,
    base_model: str | None = None,
    plain_convolutions: bool = False,
) -> Path:
    """Write the LoRA tensors among ``values`` as a peft adapter.

    Args:
        folder: made when it does not exist; files of the same name are replaced.
        values: device tensors by name (numpy arrays or CPU tensors).
        owners: tensor name to module name, as in the manifest.
        modules: the manifest's module table, rows with ``name``, ``kind`` and ``config``.
        base_model: recorded as ``base_model_name_or_path``.
        plain_convolutions: state that no adapted convolution has a dilation or a padding mode. peft knows
            neither and would compute something else.

    Returns:
        The folder.

    Raises:
        ConfigError: there is no LoRA tensor, or a convolution peft cannot express.
        StorageFullError, UnwritableError: the files cannot be written.
    """
    layers = _layers(values, owners, modules)
    if not layers:
        raise ConfigError("the state has no LoRA tensors", mend="only LoRA modules exist in peft")
    tensors: dict[str, np.ndarray] = {}
    for path, (_, _, a, b, embedding) in layers.items():
        if a.ndim > 2 and not plain_convolutions:
            raise ConfigError(
                f"whether the convolution {path!r} has a dilation is not known here; peft ignores dilations",
                mend="export from the model: export_model(model, folder); or set plain_convolutions=True",
            )
        if embedding:
            tensors[f"{_PREFIX}{path}.lora_embedding_A"] = np.ascontiguousarray(a.T)
            tensors[f"{_PREFIX}{path}.lora_embedding_B"] = np.ascontiguousarray(b)
        else:
            tensors[f"{_PREFIX}{path}.lora_A.weight"] = np.ascontiguousarray(a)
            tensors[f"{_PREFIX}{path}.lora_B.weight"] = np.ascontiguousarray(b)
    rank, alpha = next(iter(layers.values()))[:2]
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        # a regex for whole paths: a list would also match other paths with the same ending
        "target_modules": "|".join(re.escape(path) for path in layers),
        "rank_pattern": {f"^{re.escape(p)}": row[0] for p, row in layers.items() if row[0] != rank},
        "alpha_pattern": {f"^{re.escape(p)}": row[1] for p, row in layers.items() if row[1] != alpha},
    }
    out = Path(folder)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    atomic_write(out / WEIGHTS_FILE, save(tensors, metadata={"format": "pt"}), mode=0o600)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    atomic_write(out / CONFIG_FILE, text.encode(), mode=0o600)
    return out


def export_model(model: Any, folder: str | os.PathLike[str], *, base_model: str | None = None) -> Path:
    """Write the LoRA part of a ``PersonalizedModel`` with its present values; see :func:`export_adapter`.

    Raises:
        ConfigError: as there, and for a convolution with a dilation or padding mode, which peft ignores.
    """
    owners = {info.name: info.module for info in model.device_tensors()}
    for name in owners:
        path, _, leaf = name.rpartition(".")
        if leaf != "lora_A":
            continue
        layer = model.backbone.get_submodule(path)
        if any(d != 1 for d in getattr(layer, "dilation", ())) or (
            getattr(layer, "padding_mode", "zeros") != "zeros"
        ):
            raise ConfigError(
                f"convolution {path!r} has a dilation or a padding mode, which peft ignores",
                mend="keep the personal state in its own format",
            )
    values = {name: value.cpu().numpy() for name, value in model.values().items()}
    return export_adapter(
        folder, values, owners, model.modules_table, base_model=base_model, plain_convolutions=True
    )


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not os.path.isfile(folder / name):
            raise DataError(f"{folder} has no {name}", mend="give the folder of a peft adapter")
    try:
        config = read_json(folder / CONFIG_FILE)
        tensors = load_file(folder / WEIGHTS_FILE)
    except (SafetensorError, ValueError, OSError, KeyError, TypeError) as error:
        raise DataError(f"the adapter in {folder} is damaged: {error}", mend="save it again") from error
    if not isinstance(config, dict):
        raise DataError(f"{folder / CONFIG_FILE} holds no settings", mend="save the adapter again")
    return config, tensors


def _setting(pattern: Any, path: str, default: float) -> float:
    """peft's rule: the first key of the pattern that fits the end of the path, else the default."""
    try:
        for key, value in (pattern or {}).items():
            # Whoever wrote the file chose the pattern: one that repeats what repeats would never end.
            if len(key) > 500 or _REPEATED_GROUP.search(key) or len(_REPEATS.findall(key)) > 2:
                raise ValueError(f"the pattern {key[:80]!r} is too complicated")
            if re.match(rf"(.*\.)?({key})$", path):
                return _number(value)
        return _number(default)
    except (ValueError, TypeError, AttributeError, OverflowError, re.error) as error:
        raise DataError(
            f"the adapter's settings are damaged: {error}", mend="save the adapter again"
        ) from error


def _number(value: Any) -> float:
    found = float(value)
    if not (math.isfinite(found) and found > 0):
        raise ValueError(f"a rank or alpha is {value!r}")
    return found


def import_adapter(
    folder: str | os.PathLike[str],
    shapes: Mapping[str, tuple[int, ...]],
    owners: Mapping[str, str],
    modules: Iterable[Mapping[str, Any]],
) -> dict[str, np.ndarray]:
    """The values of a peft adapter under our names, scaled so that our modules give the same output.

    Args:
        folder: of the adapter.
        shapes: shapes of the device tensors by name.
        owners: tensor name to module name.
        modules: the manifest's module table.

    Returns:
        All LoRA tensors by name, float32, for ``load_values(..., partial=True)``.

    Raises:
        DataError: the folder is no adapter or is damaged.
        ConfigError: it is no plain LoRA (another peft type, DoRA, trained biases or whole modules).
        TensorMismatchError: its layers or ranks are not the model's.
    """
    config, tensors = _read(Path(folder))
    if config.get("peft_type") != "LORA":
        raise ConfigError(f"the adapter is {config.get('peft_type')!r}, not LORA", mend="give a LoRA adapter")
    for key in ("use_dora", "modules_to_save", "lora_bias"):
        if config.get(key):
            raise ConfigError(f"the adapter sets {key}", mend="train it without")
    settings = {m["name"]: m["config"] for m in modules if m["kind"] == "lora"}
    wanted = {name for name, owner in owners.items() if owner in settings}
    found: dict[str, np.ndarray] = {}
    for key, value in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise DataError(
                f"the adapter's tensor {key!r} is no LoRA tensor", mend="give a plain LoRA adapter"
            )
        path, leaf = match.group(1), match.group(2)
        name = f"{path}.lora_{leaf[-1]}"
        if name not in wanted:
            raise TensorMismatchError(f"the model has no {name!r}", mend=near(name, wanted))
        array = np.asarray(value, dtype=np.float32)
        if leaf == "lora_embedding_A":
            array = array.T
        if leaf.endswith("B"):
            ours = settings[owners[name]]
            rank = _setting(config.get("rank_pattern"), path, config.get("r", 8))
            alpha = _setting(config.get("alpha_pattern"), path, config.get("lora_alpha", rank))
            scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
            own = 1.0 if ours.get("alpha") is None else ours["alpha"] / ours["rank"]
            if scale != own:
                array = array * np.float32(scale / own)
        if array.shape != tuple(shapes[name]):
            raise TensorMismatchError(
                f"{name!r} is {list(array.shape)} in the adapter and {list(shapes[name])} in the model",
                mend="use an adapter of the same rank for the same backbone",
            )
        found[name] = np.ascontiguousarray(array)
    missing = sorted(wanted - set(found))
    if missing:
        raise TensorMismatchError(
            f"the adapter has no {missing[0]!r} ({len(missing)} tensors are missing)",
            mend="use an adapter that targets the same layers",
        )
    return found


def import_model(model: Any, folder: str | os.PathLike[str]) -> None:
    """Set the LoRA tensors of a ``PersonalizedModel`` from an adapter; see :func:`import_adapter`."""
    infos = model.device_tensors()
    values = import_adapter(
        folder, {i.name: i.shape for i in infos}, {i.name: i.module for i in infos}, model.modules_table
    )
    model.load_values(values, partial=True)
