"""The folder of a model of Hugging Face's transformers: what it says of itself, and its weights.

Nothing is downloaded and no code of the folder is run. What does not fit is said before the weights are read, which
may take minutes.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pfl_exporters.experts import one_by_one, use_every_expert
from pfl_exporters.lowering.quiet import quiet
from pfl_mobile.errors import ConfigError, DataError, UnknownNameError, missing_package
from pfl_mobile.files.reading import MOST_VALUES, open_bytes, parse_json, read_text
from pfl_mobile.modules.insertion import matches

if TYPE_CHECKING:
    from pfl_mobile.modules.registry import ModuleConfig

Report = Callable[[str], None]

#: Files with weights, as transformers looks for them, the first that is there; an index lists several.
_SAFE, _PICKLED = "model.safetensors", "pytorch_model.bin"
_WEIGHTS = (_SAFE, f"{_SAFE}.index.json", _PICKLED, f"{_PICKLED}.index.json")
#: Bytes up to which the header of a safetensors file is read; those of the largest models are a few hundred KiB.
_MOST_HEADER = 64 << 20
#: Dtypes that become float32, which holds each number of the first two exactly.
_CONVERTED = {"BF16": "bfloat16 converted", "F16": "float16 converted", "F64": "float64 rounded"}
#: Dtypes that only mean something together with scales.
_QUANTIZED = re.compile("I8|F8.*|F4.*|F6_.*")
_WHOLE_MODEL = "give the folder of a whole model, as save_pretrained writes it"


@dataclass(frozen=True)
class ModelFolder:
    """A folder that was looked at.

    Attributes:
        path: of the folder.
        name: of the folder, or of the model in the cache.
        architecture: name of the class.
        made: the class of transformers.
        config: of transformers.
        headers: dtype of each tensor by name, as the format names them, where the files say so.
    """

    path: Path
    name: str
    architecture: str
    made: Any
    config: Any
    headers: Mapping[str, str]

    def weights(self, call: Callable[[Any], Any], report: Report) -> tuple[nn.Module, list[str]]:
        """The model with the folder's weights in float32, and the names of those that the folder lacks.

        Args:
            call: makes of the class one whose forward takes the inputs of a task.
            report: told what is done.

        Raises:
            DataError: they cannot be read, or are not those of the architecture.
        """
        size = sum(
            file.stat().st_size for file in self.path.glob("*") if file.suffix in (".safetensors", ".bin")
        )
        kinds = Counter(self.headers.values())
        converted = [said for kind, said in _CONVERTED.items() if kinds[kind]]
        as_floats = f", {' and '.join(converted)} to float32" if converted else ""
        report(f"read the weights of {self.name} ({size / 1e6:.1f} MB{as_floats})")
        try:
            with quiet():
                model, found = call(self.made).from_pretrained(
                    self.path,
                    config=self.config,
                    local_files_only=True,
                    dtype=torch.float32,
                    weights_only=True,
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                )
        except MemoryError:
            raise
        except Exception as error:  # whatever transformers, safetensors and pickle raise
            raise DataError(
                f"cannot read the weights of {self.name}: {_said(error)}",
                mend="give the folder of a whole model: config.json and *.safetensors that fit it",
            ) from error
        self._check_found(model, found)
        one_by_one(model)
        return model.eval(), sorted(found["missing_keys"])

    def _check_found(self, model: nn.Module, found: Mapping[str, Any]) -> None:
        """Raises DataError where config.json is not that of the weights."""
        for key, in_file, in_model in sorted(found["mismatched_keys"]):
            raise DataError(
                f"{key} of {self.name} is {list(in_file)} in its weights and {list(in_model)} by its config.json",
                mend="give the config.json that was saved with the weights",
            )
        layers = dict(model.named_modules())
        for key in sorted(found["unexpected_keys"]):
            for number in re.finditer(r"\.\d+(?=\.)", key):
                block, items = key[: number.end()], key[: number.start()]
                if isinstance(layers.get(items), nn.ModuleList) and block not in layers:
                    raise DataError(
                        f"the weights of {self.name} have {block}, its config.json has only "
                        f"{len(layers[items])} of {items}: the rest would be left out",
                        mend="give the config.json that was saved with the weights",
                    )


def open_folder(source: str, ends: Sequence[str]) -> ModelFolder:
    """Look at a model's folder, without its weights.

    Args:
        source: a folder, or the identifier of a model in the local cache.
        ends: of the names of architectures that have a task.

    Raises:
        MissingDependencyError: transformers is not installed.
        UnknownNameError: there is no such folder.
        ConfigError: the architecture is not one of those or brings its own code, or weights are quantized.
        DataError: it is no model, or files are missing or damaged.
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise missing_package(error, "a model of transformers") or error from error
    folder, name = _folder(source)
    if not (folder / "config.json").is_file() and (folder / "adapter_config.json").is_file():
        raise DataError(
            f"{name} is an adapter of peft and no model",
            mend=f"give the model it was trained for: hf:MODEL --adapter {folder}",
        )
    settings = read_object(folder / "config.json")
    with quiet():
        made = getattr(transformers, _named(settings, name), None)
    _check_plain(settings, name, made)
    architecture = _named(settings, name)
    taken = architecture.endswith(tuple(ends))
    if not taken or made is None:
        why = "is not in this version of transformers" if made is None else "has no task here"
        raise ConfigError(
            f"{name}: the architecture {architecture} {why}",
            mend=f"architectures that end in {', '.join(ends)} are taken as they are; for another write a function "
            "that returns a Deployment around the model: pfl-export my_model.py:build",
        )
    try:
        with quiet():
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever the library raises for values of a wrong kind
        raise DataError(
            f"transformers does not take the config.json of {name}: {_said(error)}",
            mend=_WHOLE_MODEL,
        ) from error
    if not isinstance(config, made.config_class):
        raise DataError(
            f"config.json of {name} has the model_type {settings.get('model_type')!r}, which is not that of "
            f"{architecture}",
            mend=_WHOLE_MODEL,
        )
    if hasattr(config, "use_cache"):
        config.use_cache = False
    config.return_dict = True
    use_every_expert(config)
    return ModelFolder(folder, name, architecture, made, config, _headers(folder, name))


def check_new(folder: ModelFolder, missing: Sequence[str], modules: Sequence[ModuleConfig]) -> None:
    """Weights that a folder lacks are trained as a whole, or refused.

    Raises:
        ConfigError: naming them.
    """
    trained = [
        pattern
        for module in modules
        if module.kind == "head" and getattr(module, "only", "all") == "all"
        for pattern in getattr(module, "targets", ())
    ]
    new = [key for key in missing if not _within(key, trained)]
    if new:
        raise ConfigError(
            f"{folder.name} has no weights for {', '.join(new[:4])}{' and more' if len(new) > 4 else ''}: they "
            "would be random",
            mend=f"train the layer as a whole, --head {new[0].rpartition('.')[0]}, or give a model that was trained "
            "for this task, with the config.json that was saved with it",
        )


def read_object(file: Path, values: int = MOST_VALUES) -> dict[str, Any]:
    """A file of a model's folder, which holds a JSON object of at most so many values.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    try:
        found = parse_json(read_text(file), values=values)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {file}: {error}", mend=_WHOLE_MODEL) from error
    if not isinstance(found, dict):
        raise DataError(f"{file} is no object", mend=_WHOLE_MODEL)
    return found


def _said(error: Exception) -> str:
    """What a library says, without what it goes on to say."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    return said or type(error).__name__


def _folder(source: str) -> tuple[Path, str]:
    """Where a model is, and what it is called."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path.resolve(), path.resolve().name
    if path.is_file():
        raise UnknownNameError(
            f"{source} is a file",
            mend="give the folder of the model: config.json, tokenizer.json and weights",
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, local_files_only=True)), source.rpartition("/")[2]
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise UnknownNameError(
            f"{source} is no folder, and no model of that name is in the local cache",
            mend="give the folder that save_pretrained wrote, or download it first: hf download NAME",
        ) from error


def _named(settings: Mapping[str, Any], name: str) -> str:
    named = settings.get("architectures")
    if not isinstance(named, list) or not named or not isinstance(named[0], str):
        raise DataError(
            f"{name}: config.json names no architecture", mend="save the model with save_pretrained"
        )
    return named[0]


def _check_plain(settings: Mapping[str, Any], name: str, made: Any) -> None:
    if settings.get("auto_map"):
        known = (
            ""
            if made is None
            else (
                "; or take auto_map out of its config.json, for transformers has a class of that name, if you know "
                "that it computes the same"
            )
        )
        raise ConfigError(
            f"{name} brings code of its own ({', '.join(sorted(settings['auto_map']))}), which is not run",
            mend=f"load it yourself where you trust it, in a function that returns a Deployment{known}",
        )
    if settings.get("quantization_config"):
        raise ConfigError(
            f"{name} has quantized weights, whose gradients no engine here has",
            mend="give the model before it was quantized, or dequantize it: model.dequantize().float()",
        )


def _headers(folder: Path, name: str) -> dict[str, str]:
    """Dtype of each tensor of the safetensors files, which are all there.

    Raises:
        DataError: there are no weights, one of several files is missing, or a header is damaged.
        ConfigError: weights are in a format that no engine trains through.
    """
    first = next((file for file in _WEIGHTS if (folder / file).is_file()), None)
    if first is None:
        others = sorted(
            p.name
            for p in folder.glob("*")
            if p.suffix in (".h5", ".msgpack", ".gguf", ".bin", ".safetensors")
        )
        raise DataError(
            f"{name} has no weights: there is no {_SAFE}, and no {_PICKLED}"
            + (f", only {', '.join(others[:3])}" if others else ""),
            mend="save the model with save_pretrained in the form of PyTorch, and give that folder",
        )
    files = [first]
    if first.endswith(".json"):
        table = read_object(folder / first).get("weight_map")
        if not isinstance(table, dict) or not all(isinstance(file, str) for file in table.values()):
            raise DataError(f"{folder / first} lists no files of weights", mend=_WHOLE_MODEL)
        files = sorted(set(table.values()))
        missing = [file for file in files if not (folder / file).is_file()]
        if missing:
            raise DataError(
                f"{name} lacks {len(missing)} of {len(files)} files of weights: {', '.join(missing[:4])}",
                mend="download the model whole: hf download NAME",
            )
    found: dict[str, str] = {}
    for file in files:
        if file.endswith(".safetensors"):
            found |= _header(folder / file)
    for tensor, kind in found.items():
        if _QUANTIZED.fullmatch(kind):
            raise ConfigError(
                f"{tensor} of {name} is in {kind}: quantized weights, whose gradients no engine here has",
                mend="give the model before it was quantized, or dequantize it: model.dequantize().float()",
            )
    return found


def _header(file: Path) -> dict[str, str]:
    """Dtypes of the tensors of a safetensors file."""
    try:
        with open_bytes(file) as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > _MOST_HEADER:
                raise ValueError("its header is too long")
            entries = parse_json(stream.read(length))
        size = file.stat().st_size - 8 - length
        found = {name: entry for name, entry in entries.items() if name != "__metadata__"}
        ends = max((entry["data_offsets"][1] for entry in found.values()), default=0)
        if ends != size:
            raise ValueError(f"it has {size} bytes of tensors, and lists {ends}")
        return {name: str(entry["dtype"]) for name, entry in found.items()}
    except (OSError, struct.error, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise DataError(
            f"cannot read the weights {file}: {error}", mend="download or save the file again"
        ) from error


def _within(key: str, patterns: Sequence[str]) -> bool:
    parts = key.split(".")
    return any(matches(p, ".".join(parts[:n])) for n in range(1, len(parts) + 1) for p in patterns)
