"""A model of Hugging Face's transformers, from its folder: architecture, tokenizer and shapes are read, not written.

Nothing is downloaded and no code of the folder is run: a folder that ``save_pretrained`` or a download made, or an
identifier of a model that is in the local cache already.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pfl_exporters.lowering.quiet import quiet
from pfl_mobile.errors import ConfigError, DataError, UnknownNameError, missing_package
from pfl_mobile.files.reading import parse_json, read_text
from pfl_mobile.modules.insertion import ALL_LINEAR, matches
from pfl_mobile.modules.lora import LoRA
from pfl_mobile.modules.personalize import personalize
from pfl_mobile.plan.optimizers import AdamW
from pfl_mobile.plan.phases import TrainPhase
from pfl_mobile.plan.schema import Guard, Plan
from pfl_mobile.programs.deployment import Deployment, text_parts
from pfl_mobile.programs.tasks import ClassificationTask, TokenTask
from pfl_mobile.text.encoder import TextEncoder
from pfl_mobile.text.specials import SpecialIds
from pfl_mobile.text.subwords import SubwordTokenizer

if TYPE_CHECKING:
    from pfl_mobile.modules.registry import ModuleConfig
    from pfl_mobile.programs.tasks import Batch, Task

#: Examples, and tokens of each, where nobody says.
BATCH, LENGTH = 8, 64


@dataclass(frozen=True)
class Shape:
    """What a device trains with at once.

    Attributes:
        batch: examples.
        length: tokens of each; of models that read no text, nothing.
    """

    batch: int = BATCH
    length: int = LENGTH


@dataclass(frozen=True)
class _Parts:
    """What makes a deployment of a backbone: task, batch and what text has besides."""

    task: Task
    batch: Batch
    more: Mapping[str, Any]


def deployment(
    source: str | Path,
    modules: Sequence[ModuleConfig] = (LoRA(ALL_LINEAR, rank=8),),
    *,
    shape: Shape | None = None,
    plan: Plan | None = None,
    name: str | None = None,
) -> Deployment:
    """The model of a folder, with modules, ready to be exported.

    The task is that of the architecture: ``...ForCausalLM`` and ``...LMHeadModel`` learn the next token of texts, by
    the folder's ``tokenizer.json``; ``...ForSequenceClassification`` classes of rows of tokens ``input_ids`` and
    ``attention_mask`` int64 [B, T]; ``...ForImageClassification`` classes of ``pixel_values`` float32 [B, C, H, W].

    Args:
        source: a folder, or the identifier of a model in the local cache.
        modules: what is personal; patterns name the model's own layers.
        shape: batch and length.
        plan: what a device does; by default one epoch of AdamW, adopted where the loss falls.
        name: of the bundle; by default the folder's.

    Raises:
        MissingDependencyError: transformers is not installed.
        UnknownNameError: there is no such folder; a pattern matches no layer.
        ConfigError: the architecture is not one of those, brings its own code, has no such length, or its weights are
            not all there.
        DataError: its files cannot be read, or the tokenizer is not the model's.
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise missing_package(error, "a model of transformers") or error from error
    shape = shape or Shape()
    folder = _folder(str(source))
    settings = _object(folder / "config.json")
    architecture = _architecture(settings, folder)
    kind = next((k for ends, k in _KINDS.items() if architecture.endswith(ends)), None)
    with quiet():
        made = getattr(transformers, architecture, None)
    if kind is None or made is None:
        why = "is not in this version of transformers" if made is None else "has no task here"
        raise ConfigError(
            f"{folder.name}: the architecture {architecture} {why}",
            mend=f"architectures that end in {', '.join(_KINDS)} are taken as they are; for another write a function "
            "that returns a Deployment around the model: pfl-export my_model.py:build",
        )
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    if hasattr(config, "use_cache"):
        config.use_cache = False
    if shape.batch < 1 or shape.length < 2:
        raise ConfigError(
            f"batch {shape.batch} and length {shape.length}",
            mend="at least 1 example, and at least 2 tokens of each",
        )
    parts = kind(config, folder, shape)
    backbone = _weights(made, config, folder, modules)
    return Deployment(
        name=name or folder.name,
        model=personalize(backbone, list(modules)),
        task=parts.task,
        batch=parts.batch,
        plan=plan
        or Plan(
            phases=(TrainPhase(epochs=1, optimizer=AdamW(lr=1e-3), clip=1.0),),
            guard=Guard(metric="loss", min_examples=10),
        ),
        **parts.more,
    )


def by_leaf(targets: Sequence[str]) -> tuple[str, ...]:
    """Patterns from names as peft takes them: ``q_proj`` is every layer whose path ends in it."""
    written = ("*", "?", "[", ":", ".")
    return tuple(
        t if t == ALL_LINEAR or any(sign in t for sign in written) else f"re:(.*\\.)?{re.escape(t)}"
        for t in targets
    )


def _folder(source: str) -> Path:
    path = Path(source).expanduser()
    if path.is_dir():
        return path.resolve()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise UnknownNameError(
            f"{source} is no folder, and no model of that name is in the local cache",
            mend="give the folder that save_pretrained wrote, or download it first: hf download NAME",
        ) from error


def _object(file: Path) -> dict[str, Any]:
    """A file of a model's folder, which holds a JSON object."""
    try:
        found = parse_json(read_text(file))
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot read {file}: {error}",
            mend="give the folder of a whole model, as save_pretrained writes it",
        ) from error
    if not isinstance(found, dict):
        raise DataError(f"{file} is no object", mend="give the folder of a whole model")
    return found


def _architecture(settings: Mapping[str, Any], folder: Path) -> str:
    if settings.get("auto_map"):
        raise ConfigError(
            f"{folder.name} brings code of its own ({', '.join(sorted(settings['auto_map']))}), which is not run",
            mend="load it yourself where you trust it, in a function that returns a Deployment",
        )
    if settings.get("quantization_config"):
        raise ConfigError(
            f"{folder.name} has quantized weights, whose gradients no engine here has",
            mend="give the model before it was quantized, or dequantize it: model.dequantize().float()",
        )
    named = settings.get("architectures")
    if not isinstance(named, list) or not named or not isinstance(named[0], str):
        raise DataError(
            f"{folder.name}: config.json names no architecture", mend="save the model with save_pretrained"
        )
    return named[0]


def _weights(made: Any, config: Any, folder: Path, modules: Sequence[ModuleConfig]) -> nn.Module:
    try:
        with quiet():
            backbone, found = made.from_pretrained(
                folder, config=config, local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        said = str(error).strip().splitlines()
        raise DataError(
            f"cannot read the weights of {folder.name}: {said[0] if said else type(error).__name__}",
            mend="give the folder of a whole model: config.json and *.safetensors that fit it",
        ) from error
    trained = [
        pattern for module in modules if module.kind == "head" for pattern in getattr(module, "targets", ())
    ]
    missing = sorted(found["missing_keys"])
    new = [key for key in missing if not _within(key, trained)]
    if new:
        raise ConfigError(
            f"{folder.name} has no weights for {', '.join(new[:4])}{' and more' if len(new) > 4 else ''}: they "
            "would be random",
            mend=f"train the layer as a whole, --head {new[0].rpartition('.')[0]}, or give a model that was trained "
            "for this task",
        )
    return backbone.eval()


def _within(key: str, patterns: Sequence[str]) -> bool:
    parts = key.split(".")
    return any(matches(p, ".".join(parts[:n])) for n in range(1, len(parts) + 1) for p in patterns)


def _most_tokens(config: Any, shape: Shape, folder: Path) -> None:
    most = getattr(config, "max_position_embeddings", None)
    if isinstance(most, int) and shape.length > most:
        raise ConfigError(
            f"{folder.name} reads at most {most} tokens, not {shape.length}", mend=f"--length {most} or less"
        )


def _language(config: Any, folder: Path, shape: Shape) -> _Parts:
    _most_tokens(config, shape, folder)
    tokenizer = _tokenizer(config, folder)
    encoder = TextEncoder(tokenizer, shape.length, config.vocab_size)
    parts = text_parts(encoder, shape.batch)
    task = TokenTask(config.vocab_size, specials=_leading_specials(tokenizer))
    return _Parts(task, parts.pop("batch"), parts)


def _tokenizer(config: Any, folder: Path) -> SubwordTokenizer:
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise DataError(
            f"{folder.name} has no tokenizer.json",
            mend="save the fast tokenizer beside the model: AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER)",
        )
    ids = {name: _first(getattr(config, f"{name}_token_id", None)) for name in ("pad", "bos", "eos")}
    told = folder / "tokenizer_config.json"
    added = _object(file).get("added_tokens") or []
    known = {t["content"]: t["id"] for t in added if isinstance(t, dict) and {"content", "id"} <= set(t)}
    said = _object(told) if told.is_file() else {}
    for name in ("pad", "bos", "eos", "unk"):
        token = said.get(f"{name}_token")
        content = token.get("content") if isinstance(token, dict) else token
        if ids.get(name) is None and content in known:
            ids[name] = known[content]
    eos = ids["eos"] if ids["eos"] is not None else ids["bos"]
    if eos is None:
        raise DataError(
            f"{folder.name} does not say which token ends a text",
            mend="set eos_token_id in config.json, or eos_token in tokenizer_config.json",
        )
    bos = eos if ids["bos"] is None else ids["bos"]
    unk = ids.get("unk")
    tokenizer = SubwordTokenizer(
        read_text(file),
        SpecialIds(eos if ids["pad"] is None else ids["pad"], bos, eos, -1 if unk is None else unk),
    )
    if tokenizer.size > config.vocab_size:
        raise DataError(
            f"the tokenizer of {folder.name} has {tokenizer.size} ids, the model {config.vocab_size}: it is not the "
            "model's",
            mend="give the tokenizer that the model was trained with",
        )
    return tokenizer


def _first(given: Any) -> int | None:
    """A model may have several tokens that end a text."""
    found = given[0] if isinstance(given, list) and given else given
    return found if isinstance(found, int) and found >= 0 else None


def _leading_specials(tokenizer: SubwordTokenizer) -> int:
    """How many of the first ids are special tokens, which are no suggestions."""
    count = 0
    while count in tokenizer.left_out:
        count += 1
    return count


def _classes(config: Any, inputs: dict[str, Tensor]) -> _Parts:
    count = len(next(iter(inputs.values())))
    classes = int(config.num_labels)
    batch = {**inputs, "labels": torch.arange(count) % classes, "weight": torch.ones(count)}
    return _Parts(ClassificationTask(classes, inputs=tuple(inputs)), batch, {})


def _sentences(config: Any, folder: Path, shape: Shape) -> _Parts:
    _most_tokens(config, shape, folder)
    draw = torch.Generator().manual_seed(0)
    rows = (shape.batch, shape.length)
    lengths = torch.arange(shape.batch) % (shape.length // 2) + shape.length // 2
    mask = (torch.arange(shape.length) < lengths.unsqueeze(1)).to(torch.int64)
    pad = _first(getattr(config, "pad_token_id", None)) or 0
    ids = torch.randint(0, config.vocab_size, rows, generator=draw) * mask + pad * (1 - mask)
    return _classes(config, {"input_ids": ids, "attention_mask": mask})


def _pictures(config: Any, folder: Path, shape: Shape) -> _Parts:
    side = getattr(config, "image_size", None)
    sides = tuple(side) if isinstance(side, list | tuple) else (side, side)
    if not all(isinstance(s, int) for s in sides):
        raise ConfigError(
            f"{folder.name} takes pictures of any size, and a program takes one",
            mend="write image_size into its config.json",
        )
    channels = getattr(config, "num_channels", 3)
    draw = torch.Generator().manual_seed(0)
    return _classes(config, {"pixel_values": torch.randn(shape.batch, channels, *sides, generator=draw)})


#: What an architecture is for, by the end of its name.
_KINDS: dict[str, Callable[[Any, Path, Shape], _Parts]] = {
    "ForCausalLM": _language,
    "LMHeadModel": _language,
    "ForSequenceClassification": _sentences,
    "ForImageClassification": _pictures,
}
