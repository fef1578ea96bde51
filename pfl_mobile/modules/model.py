"""The personalized model: a frozen backbone, its modules, and the tensors that live on the device."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pfl_mobile.errors import OutOfVocabularyError, TensorMismatchError, near

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from pfl_mobile.modules.insertion import Insertion
    from pfl_mobile.modules.registry import ModuleConfig
    from pfl_mobile.modules.roles import DeviceTensorInfo


def tensor_digest(tensors: Mapping[str, Tensor] | nn.Module) -> str:
    """sha256 over names, shapes, dtypes and bytes of tensors, or of a module's parameters and buffers."""
    if isinstance(tensors, nn.Module):
        tensors = {**dict(tensors.named_parameters()), **dict(tensors.named_buffers())}
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def logits_of(output: Any) -> Any:
    """The logits of what a model of transformers gives; everything else as it is."""
    named = type(output).__module__.startswith("transformers.")
    return getattr(output, "logits", output) if named else output


class PersonalizedModel(nn.Module):
    """A frozen backbone with modules, made by :func:`pfl_mobile.modules.personalize.personalize`.

    Always in eval mode: dropout is off and BatchNorm keeps its statistics, as on a device. Names of tensors
    are paths in the backbone (``blocks.0.attn.q.lora_A``), or begin with the module's name (``memory.next``).
    """

    def __init__(
        self, site: Insertion, infos: Sequence[DeviceTensorInfo], configs: Mapping[str, ModuleConfig]
    ) -> None:
        """Called by ``personalize`` only."""
        super().__init__()
        self.backbone = site.root
        self.extras = site.extras
        self.configs = dict(configs)
        self._infos = tuple(sorted(infos, key=lambda info: info.name))
        self._paths = {name: placed.path for name, placed in site.tensors.items()}
        self._outputs = tuple(site.outputs)
        self._prefix = site.prefix
        self._replaced = dict(site.replaced)
        self.train(False)

    def train(self, mode: bool = True) -> PersonalizedModel:
        """Stay in eval mode: a device trains against the frozen behaviour."""
        super().train(False)
        return self

    def forward(self, *inputs: Tensor, for_gradients: bool = False) -> Tensor:
        """The personalized output; ``for_gradients`` leaves out modules that are not trained through."""
        output = self.backbone(*inputs)
        if self._prefix or self._outputs:
            output = logits_of(output)
        if self._prefix:
            output = output[:, self._prefix :]
        for name in self._outputs:
            if self.configs[name].in_gradients or not for_gradients:
                output = self.extras[name](output, *inputs)
        return output

    def forward_for_gradients(self, *inputs: Tensor) -> Tensor:
        """The output that training differentiates: without modules such as the memory."""
        return self.forward(*inputs, for_gradients=True)

    def call(self, values: Mapping[str, Tensor], *inputs: Tensor, for_gradients: bool = False) -> Tensor:
        """The output as a pure function of tensors, for tracing.

        Args:
            values: tensors by name, device or frozen, that take the place of the model's own.
            inputs: the model's inputs.
            for_gradients: as in :meth:`forward`.

        Raises:
            TensorMismatchError: a name does not exist.
        """
        placed = {self.path(name): value for name, value in values.items()}
        # Not by ``tie_weights``, which leaves the given values behind in a layer that has several paths.
        tied = self._tied(placed)
        given = {same: value for path, value in placed.items() for same in tied[path]}
        return torch.func.functional_call(
            self, given, inputs, {"for_gradients": for_gradients}, tie_weights=False
        )

    def _tied(self, paths: Collection[str]) -> dict[str, list[str]]:
        """For each path of a tensor, those of all layers that hold it, one for each layer."""
        holders: dict[int, list[str]] = {}
        own: dict[str, Tensor] = {}
        for owner, layer in self.named_modules():
            for leaf, value in (*layer._parameters.items(), *layer._buffers.items()):
                if value is not None:
                    path = f"{owner}.{leaf}" if owner else leaf
                    holders.setdefault(id(value), []).append(path)
                    own[path] = value
        return {path: holders[id(own[path])] if path in own else [path] for path in paths}

    def path(self, name: str) -> str:
        """Where a device or frozen tensor is in ``named_parameters()`` / ``named_buffers()`` of this module.

        Raises:
            TensorMismatchError: the name does not exist.
        """
        if name in self._paths:
            return self._paths[name]
        for path in (f"backbone.{name}", f"extras.{name}"):
            owner, _, leaf = path.rpartition(".")
            try:
                layer = self.get_submodule(owner)
            except AttributeError:
                continue
            if leaf in layer._parameters or leaf in layer._buffers:
                return path
        raise TensorMismatchError(f"the model has no tensor {name!r}", mend=near(name, self._paths))

    def _get(self, name: str) -> Tensor:
        owner, _, leaf = self._paths[name].rpartition(".")
        value: Tensor = getattr(self.get_submodule(owner), leaf)
        return value

    def device_tensors(self) -> list[DeviceTensorInfo]:
        """All tensors that live on the device, sorted by name."""
        return list(self._infos)

    def all_shared(self) -> PersonalizedModel:
        """The same model with every gradient-trained tensor shared, but for those with the user's own words.

        It uses the same tensors, so that one of the two is to be trained at a time.
        """
        other = copy.copy(self)
        other._infos = tuple(
            replace(info, role="shared", group=None)
            if info.update == "gradient" and not info.private
            else info
            for info in self._infos
        )
        return other

    def values(self) -> dict[str, Tensor]:
        """Copies of the device tensors, by name in sorted order."""
        return {info.name: self._get(info.name).detach().clone() for info in self._infos}

    def load_values(self, values: Mapping[str, Any], *, partial: bool = False) -> None:
        """Set the device tensors; nothing is changed when anything is wrong.

        Args:
            values: tensors or arrays by name.
            partial: allow names to be missing.

        Raises:
            TensorMismatchError: a name is unknown or missing, or a shape or dtype is another one.
            OutOfVocabularyError: a memory entry holds an id outside of the vocabulary.
        """
        checked: dict[str, Tensor] = {}
        for name, given in values.items():
            info = next((i for i in self._infos if i.name == name), None)
            if info is None:
                raise TensorMismatchError(f"{name!r} is no device tensor", mend=near(name, self._paths))
            value = torch.as_tensor(given)
            dtype = str(value.dtype).removeprefix("torch.")
            if tuple(value.shape) != info.shape or dtype != info.dtype:
                raise TensorMismatchError(
                    f"tensor {name!r} is {dtype} {list(value.shape)}, not {info.dtype} {list(info.shape)}",
                    mend="use values that were saved from the same modules",
                )
            checked[name] = value
        missing = [info.name for info in self._infos if info.name not in checked]
        if missing and not partial:
            raise TensorMismatchError(
                f"{len(missing)} tensors are missing, the first is {missing[0]!r}",
                mend="give all device tensors, or set partial=True",
            )
        for name, value in checked.items():
            config = self.configs[next(i.module for i in self._infos if i.name == name)]
            vocabulary = getattr(config, "vocabulary", None)
            if (
                vocabulary is not None
                and value.dtype == torch.int64
                and value.numel()
                and (int(value.min()) < 0 or int(value.max()) >= vocabulary)
            ):
                raise OutOfVocabularyError(
                    f"tensor {name!r} holds ids outside of 0..{vocabulary - 1}",
                    mend="encode the text with the tokenizer of this model",
                )
        with torch.no_grad():
            for name, value in checked.items():
                self._get(name).copy_(value)

    def frozen_tensors(self) -> dict[str, Tensor]:
        """All tensors that never change on a device, by name: the backbone's and the modules' own constants.

        A backbone tensor that a head made trainable is not among them; a tied one is listed once.
        """
        device = set(self._paths.values())
        found = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        return {
            path.split(".", 1)[1]: value.detach()
            for path, value in sorted(found.items())
            if path not in device
        }

    def backbone_digest(self) -> str:
        """sha256 of the backbone's tensors; ``tensor_digest(backbone)`` unless something changed it."""
        device = {id(self._get(name)) for name in self._paths}
        found: dict[str, Tensor] = {}
        seen: set[int] = set()
        named = [
            *self.backbone.named_parameters(remove_duplicate=False),
            *self.backbone.named_buffers(remove_duplicate=False),
        ]
        for name, tensor in named:
            value = self._replaced.get(name, tensor)
            if (id(tensor) in device and name not in self._replaced) or id(value) in seen:
                continue
            seen.add(id(value))
            found[name] = value
        return tensor_digest(found)

    @property
    def modules_table(self) -> list[dict[str, Any]]:
        """Name, kind and settings of every module, in the order of insertion, for the manifest."""
        return [{"name": n, "kind": c.kind, "config": c.as_dict()} for n, c in self.configs.items()]

    @property
    def neutral(self) -> bool:
        """True when no fresh module changes the backbone's output."""
        return all(config.neutral for config in self.configs.values())

    def train_parameters(self) -> list[nn.Parameter]:
        """The gradient-trained device tensors in name order, for an ordinary torch optimizer."""
        return [self._get(info.name) for info in self._infos if info.update == "gradient"]
