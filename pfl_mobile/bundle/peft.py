"""Tensors of modules and whole layers to and from a Hugging Face peft adapter folder.

An adapter folder holds ``adapter_config.json`` and ``adapter_model.safetensors``;
``peft.PeftModel.from_pretrained(backbone, folder)`` then gives the personalized model's output. An adapter is of one
method: LoRA, (IA)^3 (``Gate`` on linear layers and convolutions) or prompt tuning (``SoftPrompt`` on the embedding of a
language model). With the first two go layers that are trained as a whole (``Head``; ``modules_to_save`` in peft). Other
modules have no counterpart. Plain numpy: neither torch nor peft is imported here.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
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
    from collections.abc import Collection, Iterable, Mapping, Sequence

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PICKLED = "adapter_model.bin"

_PREFIX = "base_model.model."
_KEY = re.compile(r"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(\.weight)?")
#: What peft calls the output layer inside of an adapted ``nn.MultiheadAttention``, and what it is called in the model.
_PACKED, _OUT = ".base_layer.out_proj", ".out_proj"
_RECURRENT = re.compile(r"(.+)\.(ih|hh|hr)_l\d+(_reverse)?")
_LENGTHS = "lora_magnitude_vector"
_SCALED = re.compile(r"(.+)\.ia3_l")
_GATE = "gate_scale"
_PROMPT = "prompt_embeddings"


#: Methods of peft by the kind of module that does the same; an adapter is of the first that a model has.
_METHODS = {"lora": "LORA", "gate": "IA3", "prompt": "PROMPT_TUNING"}


def _method(modules: Iterable[Mapping[str, Any]]) -> str | None:
    kinds = {m["kind"] for m in modules}
    return next((kind for kind in _METHODS if kind in kinds), None)


def left_out(modules: Iterable[Mapping[str, Any]]) -> list[str]:
    """Kinds of the modules that an adapter of the model does not have, as peft has none like them beside the others."""
    modules = list(modules)
    written = {_method(modules)}
    return sorted(
        {
            m["kind"]
            for m in modules
            if m["kind"] not in written and not (_is_whole(m) and written != {"prompt"})
        }
    )


def _is_whole(module: Mapping[str, Any]) -> bool:
    """Whether peft has a module like this one: layers trained as a whole with the outputs they had."""
    config = module["config"]
    return module["kind"] == "head" and config.get("only", "all") == "all" and config.get("outputs") is None


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
    heads = {m["name"] for m in modules if _is_whole(m)}
    return {n: np.asarray(values[n], dtype=np.float32) for n in sorted(values) if owners.get(n) in heads}


def _check_apart(layers: Iterable[str], saved: Iterable[str], module: str) -> None:
    """Raises ConfigError where peft would put nothing on a layer, as its path ends like that of a whole layer."""
    for path in layers:
        for whole in saved:
            if re.match(rf"(^|.*\.){re.escape(whole)}($|\..*)", path):
                raise ConfigError(
                    f"layer {path!r} has {module}, which peft leaves out because {whole!r} is trained as a whole",
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
    """Write what peft knows among ``values`` as an adapter: LoRA or else gates, with the layers trained as a whole, or
    else a prompt.

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
        ConfigError: there is no such tensor, or a layer that peft cannot express.
        StorageFullError, UnwritableError: the files cannot be written.
    """
    modules = list(modules)
    kind = _method(modules)
    if kind is None:
        raise ConfigError(
            "the state has no LoRA tensors, no gates and no prompt", mend="only these modules exist in peft"
        )
    whole = {} if kind == "prompt" else _whole(values, owners, modules)
    saved = sorted({name.rpartition(".")[0] for name in whole})
    tensors = {f"{_PREFIX}{name}": np.ascontiguousarray(value) for name, value in whole.items()}
    config: dict[str, Any] = {
        "peft_type": _METHODS[kind],
        "task_type": None,
        "base_model_name_or_path": base_model,
        "inference_mode": True,
    }
    if kind == "prompt":
        prompts, own = _prompt(values, owners, modules)
    else:
        config["modules_to_save"] = saved or None
        if kind == "gate":
            prompts, own = _gates(values, owners, modules, saved)
        else:
            prompts, own = _low_rank(values, owners, modules, embeddings, saved, plain_convolutions)
    out = Path(folder)
    private_folder(out, ours=(WEIGHTS_FILE, CONFIG_FILE))
    atomic_write(out / WEIGHTS_FILE, save(tensors | prompts, metadata={"format": "pt"}), mode=PRIVATE)
    text = json.dumps(config | own, indent=2, sort_keys=True) + "\n"
    atomic_write(out / CONFIG_FILE, text.encode(), mode=PRIVATE)
    return out


_Written = tuple[dict[str, np.ndarray], dict[str, Any]]


def _low_rank(
    values: Mapping[str, Any],
    owners: Mapping[str, str],
    modules: Sequence[Mapping[str, Any]],
    embeddings: Collection[str] | None,
    saved: Sequence[str],
    plain_convolutions: bool,
) -> _Written:
    """Tensors and settings of LoRA."""
    layers = _layers(values, owners, modules, embeddings)
    if not layers:
        raise ConfigError("the state has no LoRA tensors", mend="export all values of the state")
    _check_apart(layers, saved, "LoRA")
    dora = {layer.lengths is not None for layer in layers.values()}
    if len(dora) > 1:
        raise ConfigError(
            "some layers have LoRA and others DoRA, and an adapter of peft has one of them",
            mend="use dora=True for all, or for none; or keep the personal state in its own format",
        )
    tensors: dict[str, np.ndarray] = {}
    for path, layer in layers.items():
        if layer.a.ndim > 2 and not plain_convolutions:
            raise ConfigError(
                f"whether the convolution {path!r} has a dilation is not known here; peft ignores dilations",
                mend="export from the model: export_model(model, folder); or set plain_convolutions=True",
            )
        tensors |= layer.tensors(path)
    first = next(iter(layers.values()))
    return tensors, {
        "r": first.rank,
        "lora_alpha": first.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": dora == {True},
        # a regex for whole paths: a list would also match other paths with the same ending
        "target_modules": _any_of(layers),
        "rank_pattern": {f"^{re.escape(p)}": x.rank for p, x in layers.items() if x.rank != first.rank},
        "alpha_pattern": {f"^{re.escape(p)}": x.alpha for p, x in layers.items() if x.alpha != first.alpha},
    }


def _any_of(paths: Iterable[str]) -> str:
    return "|".join(re.escape(path) for path in paths)


def _gates(
    values: Mapping[str, Any],
    owners: Mapping[str, str],
    modules: Sequence[Mapping[str, Any]],
    saved: Sequence[str],
) -> _Written:
    """Tensors and settings of (IA)^3, for layers that peft takes: linear ones, and convolutions of two dimensions."""
    on = {m["name"]: m["config"].get("on", "output") for m in modules if m["kind"] == "gate"}
    found = {
        name.removesuffix(f".{_GATE}"): on[owners[name]] == "input"
        for name in sorted(values)
        if owners.get(name) in on
    }
    if not found:
        raise ConfigError("the state has no gates", mend="export all values of the state")
    _check_apart(found, saved, "a gate")
    tensors = {}
    for path, before in found.items():
        scale = np.asarray(values[f"{path}.{_GATE}"], dtype=np.float32)
        tensors[f"{_PREFIX}{path}.ia3_l"] = scale.reshape(1, -1) if before else scale.reshape(-1, 1)
    return tensors, {
        "target_modules": _any_of(found),
        "feedforward_modules": _any_of(path for path, before in found.items() if before) or [],
        "fan_in_fan_out": False,
    }


def _prompt(
    values: Mapping[str, Any], owners: Mapping[str, str], modules: Sequence[Mapping[str, Any]]
) -> _Written:
    """Tensor and settings of prompt tuning, which peft puts before the tokens of a causal language model."""
    configs = {m["name"]: m["config"] for m in modules if m["kind"] == "prompt"}
    names = [name for name in values if owners.get(name) in configs]
    if len(names) != 1 or not configs[owners[names[0]]].get("strip", True):
        raise ConfigError(
            f"the model has {len(names)} prompts"
            if len(names) != 1
            else "the prompt is not one of a language model",
            mend="peft takes one prompt, SoftPrompt(target) on the embedding of a causal language model",
        )
    prompt = np.ascontiguousarray(np.asarray(values[names[0]], dtype=np.float32))
    length, width = prompt.shape
    return {_PROMPT: prompt}, {
        "task_type": "CAUSAL_LM",
        "num_virtual_tokens": length,
        "token_dim": width,
        "num_transformer_submodules": 1,
    }


def export_model(model: Any, folder: str | os.PathLike[str], *, base_model: str | None = None) -> Path:
    """Write what peft knows of a ``PersonalizedModel`` with its present values; see :func:`export_adapter`.

    Raises:
        ConfigError: as there, and for a layer with LoRA that peft would compute otherwise.
    """
    owners = {info.name: info.module for info in model.device_tensors()}
    _check_prompts(model)
    _check_gates(model)
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


def _check_prompts(model: Any) -> None:
    """peft knows prompts of transformers' models only, before what their token embedding gives.

    Raises:
        ConfigError: a prompt is elsewhere.
    """
    for info in model.device_tensors():
        if model.configs[info.module].kind == "prompt":
            path, found = info.name.rpartition(".")[0], getattr(model.backbone, "get_input_embeddings", None)
            if found is None or found() is not model.backbone.get_submodule(path):
                raise ConfigError(
                    f"the prompt is on {path!r}, and peft's stand before a model's embedded tokens",
                    mend="keep the personal state in its own format",
                )


def _check_gates(model: Any) -> None:
    """Raises ConfigError for a gate that is not on a linear layer, as those are that peft scales in this form."""
    for info in model.device_tensors():
        path, _, leaf = info.name.rpartition(".")
        layer = model.backbone.get_submodule(path) if leaf == _GATE else None
        if layer is not None and not (hasattr(layer, "in_features") or type(layer).__name__ == "Conv1D"):
            raise ConfigError(
                f"the gate on {path!r} is on a {type(layer).__name__}, and adapters of (IA)^3 are written for linear "
                "layers only",
                mend="keep the personal state in its own format",
            )


def adapted_layers(tensors: Iterable[str]) -> frozenset[str]:
    """Paths of the layers that an adapter's tensors, of these names in the file, are modules of."""
    names = [key.removeprefix(_PREFIX) for key in tensors]
    matches = [_KEY.fullmatch(name) or _SCALED.fullmatch(name) for name in names]
    return frozenset(m.group(1).removesuffix(_PACKED) for m in matches if m is not None)


def has_weights(folder: Path) -> bool:
    """Whether the folder of an adapter holds more than its settings."""
    return any((folder / name).exists() for name in (WEIGHTS_FILE, _PICKLED))


def read_adapter(folder: Path) -> tuple[AdapterConfig, dict[str, np.ndarray]]:
    """Settings and tensors of an adapter, by the names that peft gives them; errors as of :func:`import_adapter`."""
    weights = folder / WEIGHTS_FILE
    if not weights.is_file() and (folder / _PICKLED).is_file():
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
        All tensors of the adapter's method by name, and those of heads that are in the adapter, float32, for
        ``load_values(..., partial=True)``.

    Raises:
        DataError: the folder is no adapter or is damaged.
        ConfigError: it has no module here, is not on the backbone as it is, or a setting is not known.
        TensorMismatchError: its layers or ranks are not the model's.
    """
    config, tensors = read_adapter(Path(folder))
    modules = list(modules)
    reading = _Reading(Path(folder), config, shapes, owners, modules, backbone, embeddings, frozenset(unused))
    kind = next(kind for kind, method in _METHODS.items() if method == config.method)
    named = {m["name"] for m in modules if m["kind"] == kind}
    wanted = {name for name, owner in owners.items() if owner in named}
    if not wanted:
        raise TensorMismatchError(
            f"the adapter is one of {config.method}, and the model has no {kind}",
            mend=f"put {_MODULES[kind]} into it for the layers of the adapter",
        )
    for key, array in tensors.items():
        reading.take(key, array, wanted)
    missing = sorted(wanted - set(reading.found))
    if missing:
        raise TensorMismatchError(
            f"the adapter has no {missing[0]!r} ({len(missing)} tensors are missing)",
            mend="use an adapter that targets the same layers",
        )
    return reading.found


#: How the modules that an adapter needs are called.
_MODULES = {"lora": "LoRA(...)", "gate": "Gate(...)", "prompt": "SoftPrompt(...)"}


@dataclass
class _Reading:
    """An adapter while its tensors are put under our names; arguments as those of :func:`import_adapter`."""

    folder: Path
    config: AdapterConfig
    shapes: Mapping[str, tuple[int, ...]]
    owners: Mapping[str, str]
    modules: Sequence[Mapping[str, Any]]
    backbone: Mapping[str, Any] | None
    embeddings: Collection[str] | None
    unused: frozenset[str]
    found: dict[str, np.ndarray] = field(default_factory=dict)

    def take(self, key: str, array: np.ndarray, wanted: Collection[str]) -> None:
        """Find the place of a tensor among the wanted ones or the layers that are trained as a whole."""
        name = key.removeprefix(_PREFIX)
        low_rank, scaled = _KEY.fullmatch(name), _SCALED.fullmatch(name)
        if low_rank is not None and self.config.method == "LORA":
            if low_rank.group(1) not in self.unused:
                self._low_rank(key, low_rank, array, wanted)
        elif scaled is not None and self.config.method == "IA3":
            self._scale(scaled.group(1), array, wanted)
        elif name == _PROMPT and self.config.method == "PROMPT_TUNING":
            self._take(next(iter(wanted)), array)
        else:
            self._whole(name.replace(".base_layer.", "."), array)

    def _take(self, name: str, array: np.ndarray) -> None:
        if name in self.found:
            raise DataError(f"the adapter in {self.folder} has {name!r} twice", mend="save it again")
        if array.shape != tuple(self.shapes[name]):
            raise TensorMismatchError(
                f"{name!r} is {list(array.shape)} in the adapter and {list(self.shapes[name])} in the model",
                mend="use an adapter of the same rank for the same backbone",
            )
        if not np.isfinite(array).all():
            raise DataError(f"{name!r} of the adapter has NaN or infinite values", mend="train it again")
        self.found[name] = np.ascontiguousarray(array)

    def _whole(self, name: str, array: np.ndarray) -> None:
        heads = {m["name"]: m["config"].get("only", "all") for m in self.modules if m["kind"] == "head"}
        delta = f"{name.removesuffix('.bias')}.bias_delta"
        if heads.get(self.owners.get(name, "")) == "all":
            self._take(name, array)
        elif (
            heads.get(self.owners.get(delta, "")) == "bias"
            and self.backbone is not None
            and name in self.backbone
        ):
            self._take(delta, array - _as_floats(self.backbone[name]))
        else:
            _check_frozen(name, array, self.backbone)

    def _check_adapted(self, path: str) -> None:
        """Raises ConfigError for tensors of a layer that the settings leave out."""
        if not self.config.adapts(path):
            raise ConfigError(
                f"the adapter has tensors of {path!r}, but its settings (target_modules, exclude_modules, "
                "layers_to_transform, modules_to_save) leave that layer out, so peft would not use them",
                mend="correct adapter_config.json, or save the adapter again",
            )

    def _scale(self, path: str, array: np.ndarray, wanted: Collection[str]) -> None:
        name, before = f"{path}.{_GATE}", self.config.scales_input(path)
        if name not in wanted:
            raise TensorMismatchError(f"the model has no {name!r}", mend=near(name, wanted))
        self._check_adapted(path)
        on = next(m["config"].get("on", "output") for m in self.modules if m["name"] == self.owners[name])
        side = "input" if before else "output"
        if on != side:
            raise ConfigError(
                f"the adapter scales the {side} of {path!r}, and the model has a gate on its {on}",
                mend=f'personalize with Gate({path!r}, on="{side}")',
            )
        if array.ndim == 2 and array.shape[0 if before else 1] != 1:
            raise DataError(
                f"ia3_l of {path!r} is {list(array.shape)} in the adapter, which is not that of a layer whose {side} "
                "is scaled",
                mend="correct feedforward_modules in adapter_config.json, or save the adapter again",
            )
        self._take(name, array.reshape(-1))

    def _low_rank(self, key: str, match: re.Match[str], array: np.ndarray, wanted: Collection[str]) -> None:
        config, owners = self.config, self.owners
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
        self._check_adapted(adapted)
        if leaf == _LENGTHS:
            self._take(name, array.reshape(-1))
            return
        embeddings = self.embeddings
        if embeddings is not None and leaf.startswith("lora_embedding") != (path in embeddings):
            raise TensorMismatchError(
                f"the adapter's {key!r} is not what peft keeps for "
                f"{'an embedding' if path in embeddings else 'a layer that is no embedding'}, which {path!r} is",
                mend="use an adapter for the same backbone, trained with target_modules",
            )
        if leaf == "lora_embedding_A":
            array = array.T
        rank = config.rank_of(adapted)
        ours = next(m["config"] for m in self.modules if m["name"] == owners[name])
        if leaf.endswith("A") and array.shape == tuple(self.shapes[name]) and rank != int(ours["rank"]):
            raise DataError(
                f"{CONFIG_FILE} says that {path!r} has the rank {rank}, its tensors have {ours['rank']}",
                mend="save the adapter again, or correct r and rank_pattern",
            )
        if leaf.endswith("B"):
            own = 1.0 if ours.get("alpha") is None else ours["alpha"] / ours["rank"]
            scale = config.scale(path) if adapted == path else config.output_scale(adapted)
            if scale != own:
                array = array * np.float32(scale / own)
        self._take(name, array)


def _as_floats(value: Any) -> np.ndarray:
    """A frozen tensor; numpy has no bfloat16."""
    return np.asarray(value.float() if hasattr(value, "float") else value, dtype=np.float32)


def _check_frozen(name: str, array: np.ndarray, backbone: Mapping[str, Any] | None) -> None:
    """Refuse a tensor of the adapter that is neither trained here nor the backbone's own (ConfigError, DataError)."""
    if backbone is not None and name in backbone:
        own = _as_floats(backbone[name])
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
    _check_prompts(model)
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
