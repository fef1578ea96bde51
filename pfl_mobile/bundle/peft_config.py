"""What an adapter_config.json of Hugging Face peft says, read in full.

Every key is understood, known to change nothing in what the adapter computes, or refused by name: a key that is
passed over in silence is an adapter with other outputs than in peft.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pfl_mobile.errors import ConfigError, DataError
from pfl_mobile.files.reading import read_json

if TYPE_CHECKING:
    from pathlib import Path

MERGE = (
    "merge it into the backbone with peft, PeftModel.from_pretrained(backbone, folder).merge_and_unload(), and "
    "personalize the result"
)

#: Keys that change nothing in what is computed: where the adapter comes from, how it was started and trained, for
#: which kernels. (``fan_in_fan_out`` is about merging into transposed weights, VeLoRA about the backward pass.)
_HARMLESS = frozenset(
    {
        "task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version",
        "lora_dropout", "fan_in_fan_out", "megatron_core", "qalora_group_size", "runtime_config",
        "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    }
)  # fmt: skip

#: Keys that :class:`AdapterConfig` reads. (Trained biases, ``bias``, are tensors of the adapter.)
_READ = frozenset(
    {
        "peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules",
        "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "target_parameters",
        "init_lora_weights", "bias", "use_dora",
    }
)  # fmt: skip

#: The same of the other methods that are read: how (IA)^3's vectors and a prompt start, and the model's own sizes.
_HARMLESS_TOO = {
    "IA3": frozenset({"init_ia3_weights"}),
    "PROMPT_TUNING": frozenset(
        {
            "num_attention_heads", "num_layers", "token_dim", "prompt_tuning_init", "prompt_tuning_init_text",
            "tokenizer_name_or_path", "tokenizer_kwargs",
        }
    ),
}  # fmt: skip
_READ_TOO = {
    "IA3": frozenset({"feedforward_modules"}),
    "PROMPT_TUNING": frozenset({"num_virtual_tokens", "num_transformer_submodules"}),
}

#: Keys that change what is computed in a way that our LoRA cannot follow, and how.
_REFUSED = {
    "lora_bias": "the low-rank part has a bias",
    "use_qalora": "QA-LoRA averages groups of inputs",
    "velora_config": "VeLoRA compresses what training keeps of the inputs",
    "use_bdlora": "BD-LoRA has block-diagonal matrices",
    "kasa_config": "KaSA changes the backbone's weights",
    "monteclora_config": "MonteCLoRA's matrices are random variables",
    "alora_invocation_tokens": "aLoRA acts only after its invocation tokens",
    "arrow_config": "Arrow chooses among several adapters for every token",
    "layer_replication": "the adapter belongs to a model with repeated layers",
    "megatron_config": "the adapter belongs to layers of Megatron",
    "trainable_token_indices": "rows of the embedding were trained",
    "ensure_weight_tying": "tied layers share one adapter",
}

#: Neither of these can be merged: what they compute depends on the input.
_NOT_MERGED = frozenset({"alora_invocation_tokens", "arrow_config", "monteclora_config"})

#: Other methods of peft with a module of ours that does the same, which can be trained here and not read from a file.
_OURS = {"LN_TUNING": "Head on the normalization layers"}

#: Methods of peft that add inputs, keys or layers to the model, or choose by the input, and so cannot be merged.
_UNMERGEABLE = frozenset(
    {
        "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE", "ADAPTION_PROMPT",
        "XLORA", "POLY", "LILY", "SHADOW",
    }
)  # fmt: skip

#: Initial values that leave the backbone's weights as they are.
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica")

#: Initial values for which peft takes their product out of the backbone's weights, or quantizes these.
_CHANGED_BACKBONE = ("pissa", "olora", "corda", "loftq", "lora_ga")


#: Layers that peft trains whole besides, where they are there, for a classifier of texts or of tokens.
_CLASSIFIERS = ("classifier", "score")

#: The last release of peft known to add the low-rank part of an attention's output layer twice (peft#3774).
_TWICE_UP_TO = (0, 21, 2)


@dataclass(frozen=True)
class AdapterConfig:
    """The settings of an adapter that has modules here. Paths are module paths in the backbone.

    Attributes:
        method: ``LORA``, ``IA3`` or ``PROMPT_TUNING``.
        rank, alpha: where no pattern says otherwise.
        rank_stabilized: the scale is alpha over the root of the rank.
        dora: the lengths of the weights' rows are trained too.
        ranks, alphas: patterns over paths; the first that fits counts.
        targets, excluded: as in peft, a regex for whole paths or a list of endings of paths.
        parameters: endings of parameter names.
        layers, layers_pattern: indexes of the adapted layers, and what their list may be called.
        saved: endings of the paths of layers that are kept whole.
        version: of the peft that saved it, empty where that is not said.
        linear: no layers are named but all linear ones, ``all-linear``.
        bias: ``none``, ``lora_only`` (biases of the layers with LoRA are trained) or ``all``.
        feedforward: of (IA)^3, the layers whose input is scaled; a regex for whole paths or endings of paths.
        virtual_tokens: vectors of a prompt.
        task: for which peft wrapped the model, empty where that is not said.
        base: what it was trained for, as it says itself.
    """

    rank: int = 8
    alpha: float = 8.0
    method: str = "LORA"
    rank_stabilized: bool = False
    dora: bool = False
    ranks: dict[str, float] = field(default_factory=dict)
    alphas: dict[str, float] = field(default_factory=dict)
    targets: str | tuple[str, ...] | None = None
    excluded: str | tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    layers_pattern: tuple[str, ...] = ()
    saved: tuple[str, ...] = ()
    version: str = ""
    linear: bool = False
    bias: str = "none"
    feedforward: str | tuple[str, ...] = ()
    virtual_tokens: int = 0
    task: str = ""
    base: str = ""

    @classmethod
    def read(cls, path: Path) -> AdapterConfig:
        """Read ``adapter_config.json``.

        Raises:
            DataError: it cannot be read, or a value is of a wrong kind.
            ConfigError: a setting makes it something that has no module here.
        """
        try:
            config = read_json(path)
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{path} is damaged: {error}", mend="save the adapter again") from error
        if not isinstance(config, dict):
            raise DataError(f"{path} holds no settings", mend="save the adapter again")
        method = _method(config)
        get = _Getter(path, config)
        targets = config.get("target_modules")
        if method == "PROMPT_TUNING":
            _check_prompt(config)
        feedforward = get.names("feedforward_modules") if method == "IA3" else ()
        return cls(
            method=method,
            linear=targets == "all-linear",
            bias=config.get("bias") or "none",
            feedforward=feedforward,
            virtual_tokens=get.whole("num_virtual_tokens", 0) if method == "PROMPT_TUNING" else 0,
            task=str(config.get("task_type") or ""),
            base=str(config.get("base_model_name_or_path") or ""),
            rank=get.whole("r", 8),
            alpha=get.number("lora_alpha", 8.0),
            rank_stabilized=get.flag("use_rslora"),
            dora=get.flag("use_dora"),
            ranks=get.pattern("rank_pattern", least=1),
            alphas=get.pattern("alpha_pattern"),
            targets=None if targets in (None, "all-linear") else get.names("target_modules"),
            excluded=get.names("exclude_modules"),
            parameters=_listed(get.names("target_parameters")),
            layers=get.layers("layers_to_transform"),
            layers_pattern=_listed(get.names("layers_pattern")),
            saved=_listed(get.names("modules_to_save")),
            version=str(config.get("peft_version") or ""),
        )

    def rank_of(self, path: str) -> int:
        """The rank of a layer."""
        return int(_setting(self.ranks, self._key(path), self.rank))

    def scale(self, path: str) -> float:
        """The factor of B(A(x)) in a layer."""
        rank = self.rank_of(path)
        alpha = _setting(self.alphas, self._key(path), self.alpha)
        return alpha / (rank**0.5 if self.rank_stabilized else rank)

    def output_scale(self, path: str) -> float:
        """The factor of BA in the output layer of the ``nn.MultiheadAttention`` at ``path``.

        peft adds BA to the layer's weight twice, in training too, so that the adapter means twice of it. The releases
        that wrote no version of theirs did so too.

        Raises:
            ConfigError: a later peft saved it.
        """
        match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", self.version)
        if match is not None and tuple(int(part or 0) for part in match.groups()) > _TWICE_UP_TO:
            raise ConfigError(
                f"the adapter has LoRA on the attention {path!r} and was saved by peft {self.version}: up to "
                f"{'.'.join(map(str, _TWICE_UP_TO))} peft adds the low-rank part of the output layer twice, and of "
                "later versions that is not known here",
                mend=MERGE,
            )
        return 2.0 * self.scale(path)

    def _key(self, path: str) -> str:
        """What patterns are matched with: the parameter where that is what is adapted, else the layer."""
        return f"{path}.weight" if self._by_parameter(path) else path

    def adapts(self, path: str) -> bool:
        """Whether peft puts LoRA on the layer; tensors of other layers it passes over."""
        if self._by_parameter(path):
            return True
        if _named(self.excluded, path) or any(re.match(rf"(^|.*\.){m}($|\..*)", path) for m in self.saved):
            return False
        if self.targets is None:
            return not self.parameters
        if isinstance(self.targets, str) or path in self.targets:
            return isinstance(self.targets, tuple) or _named(self.targets, path)
        return _named(self.targets, path) and (not self.layers or self._index(path) in self.layers)

    def trains(self, path: str) -> bool:
        """Whether peft trains the layer itself: ``modules_to_save``, with those that it adds for some tasks.

        peft's rule: ends of names, too, so that ``classifier`` is also ``pre_classifier``.
        """
        more = _CLASSIFIERS if self.task in ("SEQ_CLS", "TOKEN_CLS") else ()
        return path.endswith((*self.saved, *more))

    def scales_input(self, path: str) -> bool:
        """Whether (IA)^3 scales the layer's input and not its output. peft's rule: ends of names, too."""
        if isinstance(self.feedforward, str):
            return bool(self.feedforward) and re.fullmatch(self.feedforward, path) is not None
        return path.endswith(self.feedforward)

    def _by_parameter(self, path: str) -> bool:
        return any(_ends(f"{path}.weight", parameter) for parameter in self.parameters)

    def _index(self, path: str) -> int | None:
        """The first number in a path that stands for a layer."""
        found = None
        for pattern in self.layers_pattern or (r"[^.]*",):
            start = r"(?:^|.*?\.)" if self.layers_pattern else r".*?\."
            found = found or re.match(rf"{start}{pattern}\.(\d+)\.", path)
        return None if found is None else int(found.group(1))


def _method(config: dict[str, Any]) -> str:
    """The method of the adapter, all of whose settings are known.

    Raises:
        ConfigError: it has no module here, or is not on the backbone as it is.
    """
    kind = config.get("peft_type")
    if kind == "LORA":
        _check_plain(config)
        return "LORA"
    if isinstance(kind, str) and kind in _READ_TOO:
        if kind == "IA3" and config.get("feedforward_modules") is None:
            raise ConfigError(
                "the adapter does not say which layers have their input scaled, feedforward_modules",
                mend="name them in adapter_config.json, [] where it is none",
            )
        _check_keys(config, _HARMLESS | _HARMLESS_TOO[kind], _READ | _READ_TOO[kind])
        return kind
    known = kind if isinstance(kind, str) else ""
    ways = ["give an adapter of LoRA, (IA)^3 or prompt tuning"]
    if known in _OURS:
        ways.append(f"train {_OURS[known]}, the same method, on the devices")
    if known and known not in _UNMERGEABLE:
        ways.append(MERGE)
    raise ConfigError(f"the adapter is {kind!r}, not LORA, IA3 or PROMPT_TUNING", mend="; or ".join(ways))


def _check_prompt(config: dict[str, Any]) -> None:
    """Raises ConfigError for a prompt that does not stand before the tokens of a language model."""
    if config.get("task_type") != "CAUSAL_LM" or config.get("num_transformer_submodules") not in (None, 1):
        raise ConfigError(
            f"the adapter is a prompt for the task {config.get('task_type')!r}, and here prompts stand before the "
            "tokens of a causal language model only",
            mend="give LoRA or (IA)^3 for this model",
        )
    if config.get("modules_to_save"):
        raise ConfigError(
            "the adapter is a prompt with modules_to_save, which is not known here",
            mend="train it without modules_to_save",
        )


def _check_plain(config: dict[str, Any]) -> None:
    """Raises ConfigError for what is not LoRA on the backbone as it is."""
    start = config.get("init_lora_weights", True)
    name = str(start).lower()
    if name.startswith(_CHANGED_BACKBONE):
        raise ConfigError(
            f"the adapter has init_lora_weights={start!r}: peft changes the backbone's weights for it, so its tensors "
            "mean something else on the backbone as it is",
            mend="convert it to plain LoRA as peft does, save_pretrained(folder, path_initial_model_for_weight_"
            f"conversion=initial_adapter), where peft can for this start; or {MERGE}",
        )
    if not isinstance(start, bool | None) and name not in _PLAIN_STARTS:
        raise ConfigError(
            f"the adapter has init_lora_weights={start!r}, which is not known here, and might change the backbone",
            mend=f"{MERGE}; or set init_lora_weights to true in the file if the backbone stays as it is",
        )
    if config.get("bias", "none") not in ("none", "all", "lora_only", None):
        raise ConfigError(
            f"the adapter has bias={config['bias']!r}, which is not known here",
            mend=f"train it with bias='none'; or {MERGE}",
        )
    _check_keys(config, _HARMLESS, _READ)


def _check_keys(config: dict[str, Any], harmless: frozenset[str], read: frozenset[str]) -> None:
    """Raises ConfigError for a setting that is not known, or that changes what is computed."""
    for key, value in config.items():
        if key in harmless or key in read or value is None or value is False or value == []:
            continue
        if key in _REFUSED:
            way = "" if key in _NOT_MERGED else f"; or {MERGE}"
            raise ConfigError(
                f"the adapter sets {key}={json.dumps(value)[:80]}: {_REFUSED[key]}",
                mend=f"train it without{way}",
            )
        if value != {}:
            raise ConfigError(
                f"the adapter sets {key}={json.dumps(value)[:80]}, which is not known here and might change what it "
                "computes",
                mend=f"{MERGE}; or take {key!r} out of adapter_config.json if it changes nothing",
            )


class _Getter:
    """Values of a config by key, each of its kind (DataError)."""

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path, self.config = path, config

    def number(self, key: str, default: float) -> float:
        return self._number(key, self.config.get(key, default))

    def whole(self, key: str, default: int) -> int:
        return int(self._number(key, self.config.get(key, default), least=1))

    def flag(self, key: str) -> bool:
        value = self.config.get(key) or False
        return value if isinstance(value, bool) else self._wrong(key, value, "true or false")

    def pattern(self, key: str, least: int | None = None) -> dict[str, float]:
        value = self.config.get(key) or {}
        if not isinstance(value, dict):
            self._wrong(key, value, "an object of patterns and numbers")
        for regex in value:
            self._regex(key, f"(.*\\.)?({regex})$")
        return {regex: self._number(key, number, least) for regex, number in value.items()}

    def names(self, key: str) -> str | tuple[str, ...]:
        value = self.config.get(key) or ()
        if isinstance(value, str):
            return self._regex(key, value)
        if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
            self._wrong(key, value, "a text or a list of texts")
        if key in ("modules_to_save", "layers_pattern"):  # peft takes these for regexes too
            for name in value:
                self._regex(key, name)
        return tuple(value)

    def layers(self, key: str) -> tuple[int, ...]:
        value = self.config.get(key)
        found = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(index, int) and not isinstance(index, bool) for index in found):
            self._wrong(key, value, "a whole number or a list of them")
        return tuple(found)

    def _number(self, key: str, value: Any, least: int | None = None) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            self._wrong(key, value, "a number")
        if least is not None and (value != int(value) or value < least):
            self._wrong(key, value, f"a whole number, {least} or more")
        return float(value)

    def _regex(self, key: str, regex: str) -> str:
        try:
            re.compile(regex)
        except re.error as error:
            raise DataError(
                f"{key} of {self.path} has {regex!r}, which is no valid regex: {error}", mend="correct it"
            ) from error
        return regex

    def _wrong(self, key: str, value: Any, wanted: str) -> Any:
        raise DataError(f"{key} of {self.path} is {value!r}", mend=f"give {wanted}, as peft does")


def _listed(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _setting(patterns: dict[str, float], path: str, default: float) -> float:
    """peft's rule: the first pattern that fits the end of the path, else the default."""
    for regex, value in patterns.items():
        if re.match(rf"(.*\.)?({regex})$", path):
            return value
    return float(default)


def _ends(path: str, ending: str) -> bool:
    return path == ending or path.endswith(f".{ending}")


def _named(names: str | tuple[str, ...], path: str) -> bool:
    """peft's rule: a text is a regex for the whole path, a list has ends of paths."""
    if isinstance(names, str):
        return bool(names) and re.fullmatch(names, path) is not None
    return any(_ends(path, name) for name in names)
