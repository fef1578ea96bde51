"""Put trainable modules into a frozen backbone.

model = personalize(backbone, [LoRA("*.attn.[qv]", rank=4), NgramMemory()], roles={"lora": "shared"})
model.device_tensors()      # what lives on the device, with roles
model(tokens)               # the personalized output; the backbone itself is untouched
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._prims_common import make_contiguous_strides_for
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from pfl_mobile.errors import ConfigError
from pfl_mobile.modules.attention import prepare
from pfl_mobile.modules.backbones import check_backbone, not_copied, unwrapped
from pfl_mobile.modules.insertion import Insertion
from pfl_mobile.modules.model import PersonalizedModel, tensor_digest
from pfl_mobile.modules.places import of_exception
from pfl_mobile.modules.registry import ModuleConfig
from pfl_mobile.modules.roles import DeviceTensorInfo, assign_roles

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["DeviceTensorInfo", "PersonalizedModel", "personalize", "tensor_digest"]


def _row_by_row(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy that lies row by row in memory.

    Not ``contiguous()``: a 1x1 kernel in channels_last passes for one, and XNNPACK reads its strides as they are.
    """
    if tensor.layout is not torch.strided or tensor.stride() == make_contiguous_strides_for(tensor.shape):
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def _copy(backbone: nn.Module) -> nn.Module:
    """A structural copy whose parameters and buffers use the backbone's storage, frozen, in eval mode.

    Those in another order than row by row (channels_last, expanded) are copied into that order, which devices have.
    """
    memo: dict[int, Any] = {}
    for parameter in backbone.parameters():
        memo[id(parameter)] = nn.Parameter(_row_by_row(parameter.detach()), requires_grad=False)
    for buffer in backbone.buffers():
        memo[id(buffer)] = _row_by_row(buffer.detach())
    for layer in backbone.modules():
        for hook in layer._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm | SpectralNorm):  # which computes this attribute anew at each call
                computed = getattr(layer, hook.name)
                memo[id(computed)] = computed.detach().clone()
    try:
        root = copy.deepcopy(backbone, memo)
    except Exception as error:  # what the layers themselves raise
        raise not_copied(backbone, error, memo) from error
    prepare(root)
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
        place = of_exception(error, model)
        raise ConfigError(
            f"{who} fails on the example input{f' {place}' if place.known else ''}: {type(error).__name__}: {error}",
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

    The copy uses the backbone's own storage for what stays frozen and lies row by row in memory, so it costs none.
    ``DataParallel``, ``DistributedDataParallel`` and ``torch.compile`` around the backbone are taken off, and names
    are without ``module.``. A layer that is in several places of the backbone is one layer, under its first path;
    patterns find it under each. Layers that share a parameter are several: training one unties it, as in peft.

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
    backbone, wrapper = unwrapped(backbone)
    check_backbone(backbone)
    site = Insertion(_copy(backbone), nn.ModuleDict(), seed=seed, wrapper=wrapper)
    if any(config.reads_backbone for config in configs.values()):
        tensors = (*site.root.parameters(), *site.root.buffers())
        site.untouched = copy.deepcopy(site.root, {id(tensor): tensor for tensor in tensors})
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
                placed.private,
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
