"""LoRA tensors and whole layers to and from a Hugging Face peft adapter folder.

An adapter folder holds ``adapter_config.json`` and ``adapter_model.safetensors``;
``peft.PeftModel.from_pretrained(backbone, folder)`` then gives the personalized model's output. LoRA and layers that
are trained as a whole (``Head``; ``modules_to_save`` in peft) have a counterpart in peft, other modules have none.
Plain numpy: neither torch nor peft is imported here.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save

from pfl_mobile.bundle.peft_config import MERGE, AdapterConfig
from pfl_mobile.errors import ConfigError, DataError, TensorFileError, TensorMismatchError, near
from pfl_mobile.files.atomic import PRIVATE, atomic_write, private_folder
from pfl_mobile.files.reading import MOST_TENSOR_BYTES, read_bytes
from pfl_mobile.files.tensors import floats_from_bytes

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Iterable, Mapping

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_KEY = re.compile(r"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(\.weight)?")
#: What peft calls the output layer inside of an adapted ``nn.MultiheadAttention``, and what it is called in the model.
_PACKED, _OUT = ".base_layer.out_proj", ".out_proj"
_RECURRENT = re.compile(r"(.+)\.(ih|hh|hr)_l\d+(_reverse)?")
_LENGTHS = "lora_magnitude_vector"


def expressible(kind: str, config: Mapping[str, Any]) -> bool:
    """Whether peft has a module like this one: LoRA, and layers trained as a whole with the outputs they had."""
    whole = config.get("only", "all") == "all" and config.get("outputs") is None
    return kind == "lora" or (kind == "head" and whole)


@dataclass(frozen=True)
class _Layer:
    """A layer with LoRA.

    Attributes:
        lengths: of the rows of the weight, of DoRA only.
        embedding: whether it is one; peft keeps its matrices under other names, A transposed.
    """

    rank: int
    alpha: float
    a: np.ndarray
    b: np.ndarray
    lengths: np.ndarray | None
    embedding: bool

    def tensors(self, path: str) -> dict[str, np.ndarray]:
        """Under the names that peft keeps them by."""
        path = f"{_PREFIX}{path}"
        found = (
            {f"{path}.lora_embedding_A": self.a.T, f"{path}.lora_embedding_B": self.b}
            if self.embedding
            else {f"{path}.lora_A.weight": self.a, f"{path}.lora_B.weight": self.b}
        )
        if self.lengths is not None:
            tail = (1,) * (self.a.ndim - 2)
            found[f"{path}.{_LENGTHS}"] = self.lengths.reshape(1, -1, *tail) if tail else self.lengths
        return {name: np.ascontiguousarray(value) for name, value in found.items()}


def _layers(
    values: Mapping[str, Any],
    owners: Mapping[str, str],
    modules: Iterable[Mapping[str, Any]],
    embeddings: Collection[str] | None,
) -> dict[str, _Layer]:
    """Every layer with LoRA by its path."""
    settings = {m["name"]: m["config"] for m in modules if m["kind"] == "lora"}
    found = {}
    paths = [
        name.removesuffix(".lora_A")
        for name in sorted(values)
        if name.endswith(".lora_A") and owners.get(name) in settings
    ]
    for path in paths:
        above = path.removesuffix(_OUT)
        if above != path and above in paths:  # no other layer with LoRA has one below it
            raise ConfigError(
                f"{above!r} is an nn.MultiheadAttention, and what peft computes for it depends on its version: up to "
                "0.21.2 it adds the low-rank part of the output layer twice (peft#3774)",
                mend="keep the personal state in its own format",
            )
        if match := _RECURRENT.fullmatch(path):
            raise ConfigError(
                f"{match.group(1)!r} is a recurrent layer, which peft does not adapt",
                mend="keep the personal state in its own format",
            )
        config = settings[owners[f"{path}.lora_A"]]
        leaves = ("lora_A", "lora_B", _LENGTHS) if config.get("dora") else ("lora_A", "lora_B")
        for leaf in leaves:
            if f"{path}.{leaf}" not in values:
                raise TensorMismatchError(f"{path}.{leaf} is missing", mend="export all values of the state")
        rank = int(config["rank"])
        alpha = rank if config.get("alpha") is None else config["alpha"]
        a, b, *lengths = (np.asarray(values[f"{path}.{leaf}"], dtype=np.float32) for leaf in leaves)
        if embeddings is None and a.shape == (rank, rank):
            raise ConfigError(
                f"whether {path!r} is an embedding is not known here, as it has as many inputs as the rank ({rank})",
                mend="export from the model: export_model(model, folder)",
            )
        embedding = a.ndim == 2 and (a.shape[0] != rank if embeddings is None else path in embeddings)
        found[path] = _Layer(rank, float(alpha), a, b, lengths[0] if lengths else None, embedding)
    return found


def _whole(
    values: Mapping[str, Any], owners: Mapping[str, str], modules: Iterable[Mapping[str, Any]]
) -> dict[str, np.ndarray]:
    """The tensors of layers that are trained as a whole, by name."""
    heads = {m["name"] for m in modules if m["kind"] == "head" and expressible("head", m["config"])}
    return {n: np.asarray(values[n], dtype=np.float32) for n in sorted(values) if owners.get(n) in heads}


def _check_apart(layers: Iterable[str], saved: Iterable[str]) -> None:
    """Raises ConfigError where peft would put no LoRA on a layer, as its path ends like that of a whole layer."""
    for path in layers:
        for whole in saved:
            if re.match(rf"(^|.*\.){re.escape(whole)}($|\..*)", path):
                raise ConfigError(
                    f"layer {path!r} has LoRA, which peft leaves out because {whole!r} is trained as a whole",
                    mend="train one of the two; or keep the personal state in its own format",
                )


def export_adapter(
    folder: str | os.PathLike[str],
    values: Mapping[str, Any],
    owners: Mapping[str, str],
    modules: Iterable[Mapping[str, Any]],
    *,
    base_model: str | None = None,
    plain_convolutions: bool = False,
    embeddings: Collection[str] | None = None,
) -> Path:
    """Write the LoRA tensors and the layers trained as a whole among ``values`` as a peft adapter.

    Args:
        folder: made when it does not exist; files of the same name are replaced.
        values: device tensors by name (numpy arrays or CPU tensors).
        owners: tensor name to module name, as in the manifest.
        modules: the manifest's module table, rows with ``name``, ``kind`` and ``config``.
        base_model: recorded as ``base_model_name_or_path``.
        plain_convolutions: state that no adapted convolution has a dilation or a padding mode. peft knows
            neither and would compute something else.
        embeddings: paths of the adapted layers that are embeddings; None tells them by their shapes.

    Returns:
        The folder.

    Raises:
        ConfigError: there is no LoRA tensor, or a layer that peft cannot express.
        StorageFullError, UnwritableError: the files cannot be written.
    """
    modules = list(modules)
    layers, whole = _layers(values, owners, modules, embeddings), _whole(values, owners, modules)
    if not layers:
        raise ConfigError("the state has no LoRA tensors", mend="only LoRA modules exist in peft")
    saved = sorted({name.rpartition(".")[0] for name in whole})
    _check_apart(layers, saved)
    tensors = {f"{_PREFIX}{name}": np.ascontiguousarray(value) for name, value in whole.items()}
    dora = {layer.lengths is not None for layer in layers.values()}
    if len(dora) > 1:
        raise ConfigError(
            "some layers have LoRA and others DoRA, and an adapter of peft has one of them",
            mend="use dora=True for all, or for none; or keep the personal state in its own format",
        )
    for path, layer in layers.items():
        if layer.a.ndim > 2 and not plain_convolutions:
            raise ConfigError(
                f"whether the convolution {path!r} has a dilation is not known here; peft ignores dilations",
                mend="export from the model: export_model(model, folder); or set plain_convolutions=True",
            )
        tensors |= layer.tensors(path)
    first = next(iter(layers.values()))
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": first.rank,
        "lora_alpha": first.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": dora == {True},
        "modules_to_save": saved or None,
        # a regex for whole paths: a list would also match other paths with the same ending
        "target_modules": "|".join(re.escape(path) for path in layers),
        "rank_pattern": {f"^{re.escape(p)}": x.rank for p, x in layers.items() if x.rank != first.rank},
        "alpha_pattern": {f"^{re.escape(p)}": x.alpha for p, x in layers.items() if x.alpha != first.alpha},
    }
    out = Path(folder)
    private_folder(out, ours=(WEIGHTS_FILE, CONFIG_FILE))
    atomic_write(out / WEIGHTS_FILE, save(tensors, metadata={"format": "pt"}), mode=PRIVATE)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    atomic_write(out / CONFIG_FILE, text.encode(), mode=PRIVATE)
    return out


def export_model(model: Any, folder: str | os.PathLike[str], *, base_model: str | None = None) -> Path:
    """Write what peft knows of a ``PersonalizedModel`` with its present values; see :func:`export_adapter`.

    Raises:
        ConfigError: as there, and for a layer with LoRA that peft would compute otherwise.
    """
    owners = {info.name: info.module for info in model.device_tensors()}
    embeddings = _check_layers(model, "keep the personal state in its own format")
    values = {name: value.cpu().numpy() for name, value in model.values().items()}
    return export_adapter(
        folder,
        values,
        owners,
        model.modules_table,
        base_model=base_model,
        plain_convolutions=True,
        embeddings=embeddings,
    )


def _check_layers(model: Any, mend: str) -> set[str]:
    """The paths of the embeddings with LoRA.

    Raises:
        ConfigError: peft would compute a layer with LoRA otherwise.
    """
    places: dict[int, list[str]] = {}
    for path, layer in model.backbone.named_modules(remove_duplicate=False):
        places.setdefault(id(layer), []).append(path)
    embeddings = set()
    for path, layer in model.backbone.named_modules():
        if "lora_A" not in layer._parameters:
            continue
        problem = None
        if any(d != 1 for d in getattr(layer, "dilation", ())):
            problem = "has a dilation, which peft ignores"
        elif getattr(layer, "padding_mode", "zeros") != "zeros":
            problem = "has a padding mode, which peft ignores"
        elif getattr(layer, "embed_scale", None) is not None:
            problem = "scales its embeddings, and peft scales the low-rank part with them"
        elif len(places[id(layer)]) > 1:
            problem = f"is also {places[id(layer)][1]!r}, and peft adapts only the first of the two"
        if problem is not None:
            raise ConfigError(f"layer {path!r} {problem}", mend=mend)
        if hasattr(layer, "num_embeddings"):
            embeddings.add(path)
    return embeddings


def _read(folder: Path) -> tuple[AdapterConfig, dict[str, np.ndarray]]:
    weights = folder / WEIGHTS_FILE
    if not weights.is_file() and (folder / "adapter_model.bin").is_file():
        raise DataError(
            f"{folder} has adapter_model.bin, a pickle, which is not opened here",
            mend="save the adapter again with save_pretrained(folder, safe_serialization=True)",
        )
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not os.path.isfile(folder / name):
            raise DataError(f"{folder} has no {name}", mend="give the folder of a peft adapter")
    config = AdapterConfig.read(folder / CONFIG_FILE)
    try:
        return config, floats_from_bytes(read_bytes(weights, MOST_TENSOR_BYTES), what=str(weights))
    except OSError as error:
        raise DataError(f"cannot read {weights}: {error}", mend="check its permissions") from error
    except TensorFileError as error:
        raise DataError(
            f"the adapter in {folder} is damaged: {error.message}", mend="save it again"
        ) from error


def import_adapter(
    folder: str | os.PathLike[str],
    shapes: Mapping[str, tuple[int, ...]],
    owners: Mapping[str, str],
    modules: Iterable[Mapping[str, Any]],
    *,
    backbone: Mapping[str, Any] | None = None,
    embeddings: Collection[str] | None = None,
    unused: Collection[str] = (),
) -> dict[str, np.ndarray]:
    """The values of a peft adapter under our names, scaled so that our modules give the same output.

    Args:
        folder: of the adapter.
        shapes: shapes of the device tensors by name.
        owners: tensor name to module name.
        modules: the manifest's module table.
        backbone: frozen tensors by name, where they are known: peft may store some of them with an adapter, which
            changes nothing where they are equal.
        embeddings: paths of the layers with LoRA that are embeddings, where that is known.
        unused: paths of layers that the model never calls; what an adapter has for them changes nothing, in peft too.

    Returns:
        All LoRA tensors by name, and those of heads that are in the adapter, float32, for
        ``load_values(..., partial=True)``.

    Raises:
        DataError: the folder is no adapter or is damaged.
        ConfigError: it is something else than LoRA on the backbone as it is, or a setting is not known.
        TensorMismatchError: its layers or ranks are not the model's.
    """
    config, tensors = _read(Path(folder))
    modules = list(modules)
    settings = {m["name"]: m["config"] for m in modules if m["kind"] == "lora"}
    heads = {m["name"] for m in modules if m["kind"] == "head" and m["config"].get("only", "all") == "all"}
    deltas = {m["name"] for m in modules if m["kind"] == "head" and m["config"].get("only") == "bias"}
    wanted = {name for name, owner in owners.items() if owner in settings}
    found: dict[str, np.ndarray] = {}

    def take(name: str, array: np.ndarray) -> None:
        if name in found:
            raise DataError(f"the adapter in {folder} has {name!r} twice", mend="save it again")
        if array.shape != tuple(shapes[name]):
            raise TensorMismatchError(
                f"{name!r} is {list(array.shape)} in the adapter and {list(shapes[name])} in the model",
                mend="use an adapter of the same rank for the same backbone",
            )
        if not np.isfinite(array).all():
            raise DataError(f"{name!r} of the adapter has NaN or infinite values", mend="train it again")
        found[name] = np.ascontiguousarray(array)

    for key, array in tensors.items():
        name = key.removeprefix(_PREFIX)
        match = _KEY.fullmatch(name)
        if match is not None and match.group(1) in unused:
            continue
        if match is None:
            name = name.replace(".base_layer.", ".")
            delta = f"{name.removesuffix('.bias')}.bias_delta"
            if owners.get(name) in heads:
                take(name, array)
            elif owners.get(delta) in deltas and backbone is not None and name in backbone:
                take(delta, array - _as_floats(backbone[name]))
            else:
                _check_frozen(name, array, backbone)
            continue
        path, leaf = match.group(1).replace(_PACKED, _OUT), match.group(2)
        adapted = match.group(1).removesuffix(_PACKED)  # what the settings speak of
        name = f"{path}.{leaf if leaf == _LENGTHS else f'lora_{leaf[-1]}'}"
        if leaf == _LENGTHS and name not in wanted and f"{path}.lora_A" in wanted:
            raise ConfigError(
                f"the adapter has DoRA on {path!r}, and the model has LoRA there",
                mend="personalize with LoRA(..., dora=True); or " + MERGE,
            )
        if name not in wanted:
            raise TensorMismatchError(f"the model has no {name!r}", mend=near(name, wanted))
        if leaf == _LENGTHS and not config.dora:
            raise ConfigError(
                f"the adapter has {key!r}, but not use_dora, so peft would not use it",
                mend="correct adapter_config.json, or save the adapter again",
            )
        if not config.adapts(adapted):
            raise ConfigError(
                f"the adapter has tensors of {path!r}, but its settings (target_modules, exclude_modules, "
                "layers_to_transform, modules_to_save) leave that layer out, so peft would not use them",
                mend="correct adapter_config.json, or save the adapter again",
            )
        if leaf == _LENGTHS:
            take(name, array.reshape(-1))
            continue
        if embeddings is not None and leaf.startswith("lora_embedding") != (path in embeddings):
            raise TensorMismatchError(
                f"the adapter's {key!r} is not what peft keeps for "
                f"{'an embedding' if path in embeddings else 'a layer that is no embedding'}, which {path!r} is",
                mend="use an adapter for the same backbone, trained with target_modules",
            )
        if leaf == "lora_embedding_A":
            array = array.T
        rank, ours = config.rank_of(adapted), settings[owners[name]]
        if leaf.endswith("A") and array.shape == tuple(shapes[name]) and rank != int(ours["rank"]):
            raise DataError(
                f"{CONFIG_FILE} says that {path!r} has the rank {rank}, its tensors have {ours['rank']}",
                mend="save the adapter again, or correct r and rank_pattern",
            )
        if leaf.endswith("B"):
            own = 1.0 if ours.get("alpha") is None else ours["alpha"] / ours["rank"]
            scale = config.scale(path) if adapted == path else config.output_scale(adapted)
            if scale != own:
                array = array * np.float32(scale / own)
        take(name, array)
    missing = sorted(wanted - set(found))
    if missing:
        raise TensorMismatchError(
            f"the adapter has no {missing[0]!r} ({len(missing)} tensors are missing)",
            mend="use an adapter that targets the same layers",
        )
    return found


def _as_floats(value: Any) -> np.ndarray:
    """A frozen tensor; numpy has no bfloat16."""
    return np.asarray(value.float() if hasattr(value, "float") else value, dtype=np.float32)


def _check_frozen(name: str, array: np.ndarray, backbone: Mapping[str, Any] | None) -> None:
    """Refuse a tensor of the adapter that is neither trained here nor the backbone's own (ConfigError, DataError)."""
    if backbone is not None and name in backbone:
        own = backbone[name]
        own = np.asarray(
            own.float() if hasattr(own, "float") else own, dtype=np.float32
        )  # numpy has no bfloat16
        if own.shape == array.shape and np.array_equal(own, array):
            return
        head = f"Head({name.rpartition('.')[0]!r}" + (', only="bias")' if name.endswith(".bias") else ")")
        raise ConfigError(
            f"the adapter has another {name!r} than the backbone",
            mend=f"make it trainable: personalize(backbone, [..., {head}]); or {MERGE}",
        )
    raise DataError(
        f"the adapter's tensor {name!r} is no LoRA tensor, and "
        + ("the backbone has none of that name" if backbone is not None else "no head trains it here"),
        mend=f"give a plain LoRA adapter for this backbone, saved with save_embedding_layers=False; or {MERGE}",
    )


def import_model(model: Any, folder: str | os.PathLike[str]) -> None:
    """Set the tensors of a ``PersonalizedModel`` from an adapter; see :func:`import_adapter`.

    Raises:
        ConfigError: as there, and for a layer with LoRA that peft computes otherwise.
    """
    infos = model.device_tensors()
    values = import_adapter(
        folder,
        {i.name: i.shape for i in infos},
        {i.name: i.module for i in infos},
        model.modules_table,
        # by all names: peft saves an output layer that shares its weight with the embedding under its own
        backbone={
            name: value.detach().cpu()
            for name, value in (
                *model.backbone.named_parameters(remove_duplicate=False),
                *model.backbone.named_buffers(remove_duplicate=False),
            )
        },
        embeddings=_check_layers(model, "leave the layer out of the modules, and of the adapter"),
        # an attention reads the weight of its output layer without calling it
        unused={f"{p}{_OUT}" for p, x in model.backbone.named_modules() if hasattr(x, "in_proj_weight")},
    )
    model.load_values(values, partial=True)
