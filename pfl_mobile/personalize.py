"""Put trainable modules into a frozen backbone.

model = personalize(backbone, [LoRA("*.attn.[qv]", rank=4), NgramMemory()], roles={"lora": "shared"})
model.device_tensors()      # what lives on the device, with roles
model(tokens)               # the personalized output; the backbone itself is untouched
"""

from __future__ import annotations

import copy
import hashlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pfl_mobile.errors import ConfigError, OutOfVocabularyError, TensorMismatchError, near
from pfl_mobile.modules import ModuleConfig
from pfl_mobile.modules.insertion import Insertion
from pfl_mobile.modules.roles import DeviceTensorInfo, assign_roles

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["DeviceTensorInfo", "PersonalizedModel", "personalize", "tensor_digest"]


def tensor_digest(tensors: Mapping[str, Tensor] | nn.Module) -> str:
    """sha256 over names, shapes, dtypes and bytes of tensors, or of a module's parameters and buffers."""
    if isinstance(tensors, nn.Module):
        tensors = {**dict(tensors.named_parameters()), **dict(tensors.named_buffers())}
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class PersonalizedModel(nn.Module):  # type: ignore[misc]
    """A frozen backbone with modules, made by :func:`personalize`.

    Always in eval mode: dropout is off and BatchNorm keeps its statistics, as on a device. Names of tensors
    are paths in the backbone (``blocks.0.attn.q.lora_A``), or begin with the module's name (``memory.next``).
    """

    def __init__(
        self, site: Insertion, infos: Sequence[DeviceTensorInfo], configs: Mapping[str, ModuleConfig]
    ) -> None:
        """Called by :func:`personalize` only."""
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

    def train(self, mode: bool = True) -> PersonalizedModel:  # noqa: ARG002
        """Stay in eval mode: a device trains against the frozen behaviour."""
        super().train(False)
        return self

    def forward(self, *inputs: Tensor, for_gradients: bool = False) -> Tensor:
        """The personalized output; ``for_gradients`` leaves out modules that are not trained through."""
        output = self.backbone(*inputs)
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
        return torch.func.functional_call(self, placed, inputs, {"for_gradients": for_gradients})

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
        device = set(self._paths.values())
        found: dict[str, Tensor] = {}
        seen: set[int] = set()
        named = [
            *self.backbone.named_parameters(remove_duplicate=False),
            *self.backbone.named_buffers(remove_duplicate=False),
        ]
        for name, tensor in named:
            value = self._replaced.get(name, tensor)
            if (f"backbone.{name}" in device and name not in self._replaced) or id(value) in seen:
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


def _copy(backbone: nn.Module) -> nn.Module:
    """A structural copy whose parameters and buffers use the backbone's storage, frozen, in eval mode."""
    memo: dict[int, Any] = {}
    for name, parameter in backbone.named_parameters():
        if is_lazy(parameter):
            raise ConfigError(
                f"parameter {name!r} has no shape yet", mend="run the lazy backbone on an example first"
            )
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    for buffer in backbone.buffers():
        memo[id(buffer)] = buffer.detach()
    for name, layer in backbone.named_modules():
        if getattr(layer, "max_norm", None) is not None:
            raise ConfigError(
                f"layer {name!r} has max_norm, which rewrites the frozen weights at every call",
                mend="normalise the weight once and build the layer without max_norm",
            )
    try:
        root = copy.deepcopy(backbone, memo)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(
            f"the backbone {type(backbone).__name__} cannot be copied: {error}",
            mend="keep only parameters, buffers and plain values as attributes",
        ) from error
    return root.eval()


def _shapes(root: nn.Module, example: Sequence[Tensor]) -> dict[str, tuple[int, ...]]:
    """Output shape of every layer that ``example`` reaches; ``()`` for one whose output is no tensor."""
    shapes: dict[str, tuple[int, ...]] = {}
    handles = []
    for path, layer in root.named_modules():

        def record(_layer: nn.Module, _inputs: Any, output: Any, path: str = path) -> None:
            shapes[path] = tuple(output.shape) if isinstance(output, Tensor) else ()

        handles.append(layer.register_forward_hook(record))
    try:
        _run(root, example, "the backbone")
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def _run(model: nn.Module, example: Sequence[Tensor], who: str) -> Any:
    try:
        with torch.no_grad():
            return model(*example)
    except Exception as error:
        raise ConfigError(
            f"{who} fails on the example input: {type(error).__name__}: {error}",
            mend="give the inputs that forward takes; with a soft prompt, the backbone has to take its "
            "length from the embedding's output and have room for the extra positions",
        ) from error


def _names(modules: Iterable[ModuleConfig]) -> dict[str, ModuleConfig]:
    named: dict[str, ModuleConfig] = {}
    for config in modules:
        if not isinstance(config, ModuleConfig):
            raise ConfigError(f"{config!r} is no module", mend="give for instance LoRA(targets=...)")
        name, count = config.name or config.kind, 1
        while name in named:
            if config.name:
                raise ConfigError(f"two modules are called {name!r}", mend="give them different names")
            count += 1
            name = f"{config.kind}_{count}"
        named[name] = config
    return named


def personalize(
    backbone: nn.Module,
    modules: Iterable[ModuleConfig],
    *,
    roles: Mapping[str, str] | None = None,
    groups: Mapping[str, str] | None = None,
    example: Sequence[Tensor] | None = None,
    seed: int = 0,
) -> PersonalizedModel:
    """A personalized model around any ``nn.Module``; the backbone itself is left exactly as it was.

    The copy uses the backbone's own storage for what stays frozen, so it costs no memory.

    Args:
        backbone: the pretrained network with float32 weights; takes tensors and returns one tensor.
        modules: configurations such as ``LoRA(targets="*.attn.[qv]", rank=4)``. On one layer they act in the
            order given, after heads and before vocabulary slots and soft prompts.
        roles: pattern over tensor names or module names to ``shared``, ``group`` or ``personal`` (default).
        groups: pattern to the name of a grouping, for tensors with the role ``group``.
        example: example inputs; when given, the modules are checked by running the model.
        seed: base of the deterministic initial values; they depend on it and on the tensor's name only.

    Raises:
        UnknownNameError: a pattern matches nothing.
        RoleConflictError: two patterns disagree on a tensor.
        ConfigError: the backbone or a layer cannot take the module.
    """
    configs = _names(modules)
    if not configs:
        raise ConfigError("there is no module to insert", mend="give at least one, for instance LoRA(...)")
    site = Insertion(_copy(backbone), nn.ModuleDict(), seed=seed)
    before = None
    if example is not None:
        site.shapes = _shapes(site.root, example)
        before = site.shapes.get("", ())
    ordered = sorted(configs.items(), key=lambda item: item[1].position)
    for name, config in ordered:
        site.name = name
        config.insert(site)
    chosen = assign_roles(
        site.tensors.values(), roles or {}, groups or {}, {name: config.role for name, config in ordered}
    )
    infos = []
    for name, placed in site.tensors.items():
        role, group = chosen[name]
        owner = site.extras if placed.path.startswith("extras.") else site.root
        layer, _, leaf = name.rpartition(".")
        value = getattr(owner.get_submodule(layer), leaf)
        infos.append(
            DeviceTensorInfo(
                name,
                role,
                group,
                tuple(value.shape),
                str(value.dtype).removeprefix("torch."),
                placed.update,
                placed.module,
                configs[placed.module].in_gradients,
            )
        )
    model = PersonalizedModel(site, infos, configs)
    if example is not None and before is not None:
        _check_output(model, example, before, configs)
    return model


def _check_output(
    model: PersonalizedModel,
    example: Sequence[Tensor],
    before: tuple[int, ...],
    configs: Mapping[str, ModuleConfig],
) -> None:
    """The example output has the backbone's shape, apart from a last dimension that modules widen."""
    after = _run(model, example, "the personalized model")
    if not isinstance(after, Tensor):
        raise ConfigError(
            f"the backbone returns a {type(after).__name__}, not one tensor",
            mend="wrap it in a module whose forward returns the logits only",
        )
    if tuple(after.shape)[:-1] != before[:-1]:
        raise ConfigError(
            f"with {', '.join(configs)} the output is {list(after.shape)} instead of {list(before)}",
            mend="with a soft prompt, the output has to keep the sequence as its second dimension",
        )
