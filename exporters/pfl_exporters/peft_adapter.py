"""The modules that an adapter of Hugging Face peft means, for a backbone: what is personal, read and not written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from pfl_mobile.bundle.peft import CONFIG_FILE, adapted_layers, has_weights, read_adapter
from pfl_mobile.bundle.peft_config import AdapterConfig
from pfl_mobile.errors import ConfigError, TensorMismatchError
from pfl_mobile.modules.gate import Gate
from pfl_mobile.modules.head import Head
from pfl_mobile.modules.insertion import TransposedLinear
from pfl_mobile.modules.lora import LoRA
from pfl_mobile.modules.prompt import SoftPrompt

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from pfl_mobile.modules.registry import ModuleConfig


@dataclass(frozen=True)
class PeftAdapter:
    """An adapter's folder.

    Attributes:
        folder: of it.
        config: its settings.
        layers: paths of the layers that its tensors are for; None where it has settings only.
    """

    folder: Path
    config: AdapterConfig
    layers: frozenset[str] | None

    @property
    def trained(self) -> bool:
        """Whether it has tensors, from which one can start."""
        return self.layers is not None

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> PeftAdapter:
        """Read the settings, and which layers have tensors where there are some.

        Raises:
            DataError: the folder is no adapter or is damaged.
            ConfigError: it has no module here, is not on the backbone as it is, or a setting is not known.
        """
        path = Path(folder).expanduser()
        if path.is_dir() and not has_weights(path) and (path / CONFIG_FILE).is_file():
            return cls(path, AdapterConfig.read(path / CONFIG_FILE), None)
        config, tensors = read_adapter(path)
        return cls(path, config, adapted_layers(tensors))

    def modules(self, backbone: nn.Module) -> list[ModuleConfig]:
        """The modules that give the backbone what peft gives it.

        Raises:
            TensorMismatchError: it has tensors for layers that the backbone has not.
            ConfigError: its settings name no layer of the backbone, or leave the choice to peft.
        """
        config = self.config
        if config.method == "PROMPT_TUNING":
            return [self._prompt(backbone)]
        paths = self._adapted(backbone)
        whole = [path for path, layer in backbone.named_modules() if config.trains(path) and _own(layer)]
        found: list[ModuleConfig] = []
        if config.method == "IA3":
            for on in ("output", "input"):
                chosen = [path for path in paths if config.scales_input(path) == (on == "input")]
                found += [Gate(chosen, on=on)] if chosen else []
        else:
            groups: dict[tuple[int, float], list[str]] = {}
            for path in paths:
                rank = config.rank_of(path)
                groups.setdefault((rank, config.scale(path) * rank), []).append(path)
            found += [
                LoRA(g, rank=rank, alpha=alpha, dora=config.dora) for (rank, alpha), g in groups.items()
            ]
            biased = self._biased(backbone, paths, whole)
            found += [Head(biased, only="bias")] if biased else []
        return [*found, *([Head(whole)] if whole else [])]

    def _adapted(self, backbone: nn.Module) -> list[str]:
        """Paths of the layers with a module, in the order of the backbone."""
        config = self.config
        layers = {path: layer for path, layer in backbone.named_modules() if path}
        if self.layers is not None:
            strange = sorted(self.layers - set(layers))
            if strange:
                origin = f", which was trained for {config.base}," if config.base else ""
                raise TensorMismatchError(
                    f"the adapter in {self.folder}{origin} has tensors for {strange[0]!r} ({len(strange)} such "
                    f"layers), and {type(backbone).__name__} has no layer of that name",
                    mend="give an adapter that was trained for this model",
                )
            return [path for path in layers if path in self.layers]
        if config.linear:
            kinds: tuple[type[nn.Module], ...] = (nn.Linear, TransposedLinear)
            left = [layer for layer in (_output(backbone),) if layer is not None]
            found = [p for p, x in layers.items() if isinstance(x, kinds) and not any(x is y for y in left)]
        elif config.targets is None and not config.parameters:
            raise ConfigError(
                f"{self.folder / CONFIG_FILE} names no layers, and leaves them to what peft knows of the model",
                mend='write target_modules into it: the ends of their names, or "all-linear"',
            )
        else:
            kinds = (nn.Linear, TransposedLinear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.MultiheadAttention)
            found = [path for path, layer in layers.items() if isinstance(layer, kinds)]
        found = [path for path in found if config.adapts(path) and not config.trains(path)]
        if not found:
            raise ConfigError(
                f"target_modules of {self.folder / CONFIG_FILE} matches no layer of {type(backbone).__name__}",
                mend="name layers of this model, by the ends of their names",
            )
        return found

    def _biased(self, backbone: nn.Module, paths: Iterable[str], whole: Iterable[str]) -> list[str]:
        """Layers whose bias is trained too."""
        if self.config.bias == "none":
            return []
        chosen = {p for p, _ in backbone.named_modules()} if self.config.bias == "all" else set(paths)
        inside = tuple(f"{path}." for path in whole)
        return [
            path
            for path, layer in backbone.named_modules()
            if path in chosen
            and path not in whole
            and not path.startswith(inside)
            and layer._parameters.get("bias") is not None
        ]

    def _prompt(self, backbone: nn.Module) -> SoftPrompt:
        found: Any = getattr(backbone, "get_input_embeddings", None)
        embedding = None if found is None else found()
        path = next((p for p, layer in backbone.named_modules() if layer is embedding), None)
        if path is None:
            raise ConfigError(
                f"{type(backbone).__name__} does not say which of its layers embeds tokens, where a prompt stands",
                mend="give a language model of transformers",
            )
        return SoftPrompt(path, length=self.config.virtual_tokens)


def _own(layer: nn.Module) -> bool:
    return any(True for _ in layer.parameters())


def _output(backbone: nn.Module) -> nn.Module | None:
    """The layer of a language model that gives the scores of words, which ``all-linear`` leaves out in peft."""
    found: Any = getattr(backbone, "get_output_embeddings", None)
    return None if found is None else found()
