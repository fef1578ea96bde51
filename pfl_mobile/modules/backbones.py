"""Which networks can be a backbone: wrappers come off, and what is quantized or spread over machines is refused."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from pfl_mobile.errors import ConfigError

_QUANTIZED = (
    "torch.ao.nn.quantized",
    "torch.ao.nn.intrinsic.quantized",
    "torch.ao.nn.sparse.quantized",
    "torch.nn.quantized",
    "torchao",
    "bitsandbytes",
    "auto_gptq",
    "gptqmodel",
    "awq",
    "hqq",
    "eetq",
    "aqlm",
    "quanto",
    "optimum.quanto",
    "transformers.integrations.bitnet",
)
_PREPARED = ("torch.ao.quantization", "torch.ao.nn.qat", "torch.ao.nn.intrinsic.qat", "torch.quantization")
_SHARDED = ("torch.distributed", "deepspeed", "fairscale", "megatron")


#: Classes around a whole model that compute what it computes, and the attribute that holds it.
_WRAPPERS = {
    ("torch.nn.parallel.data_parallel", "DataParallel"): "module",
    ("torch.nn.parallel.distributed", "DistributedDataParallel"): "module",
    ("torch._dynamo.eval_frame", "OptimizedModule"): "_orig_mod",
}


def unwrapped(backbone: nn.Module) -> tuple[nn.Module, str]:
    """The model without wrappers for several processors or for compilation, and what they put before its paths."""
    prefix = ""
    while (name := _WRAPPERS.get((type(backbone).__module__, type(backbone).__qualname__))) is not None:
        backbone, prefix = getattr(backbone, name), f"{prefix}{name}."
    return backbone, prefix


def _of(value: object, modules: tuple[str, ...]) -> bool:
    """Whether the class of a value, or one that it is made from, is of one of these modules."""
    return any(
        kind.__module__ == name or kind.__module__.startswith(f"{name}.")
        for kind in type(value).__mro__
        for name in modules
    )


def check_backbone(backbone: object) -> None:
    """Refuse what cannot be a backbone.

    Raises:
        ConfigError: names the layer, what is wrong with it, and what to give in its place.
    """
    if not isinstance(backbone, nn.Module):
        raise ConfigError(_no_module(backbone), mend=_no_module_mend(backbone))
    for name, tensor in (*backbone.named_parameters(), *backbone.named_buffers()):
        if is_lazy(tensor):
            raise ConfigError(f"{name!r} has no shape yet", mend="run the lazy backbone on an example first")
        if tensor.is_meta:
            raise ConfigError(
                f"{name!r} has no values yet: it is on the device 'meta'",
                mend="load the weights first: model.to_empty(device='cpu'), then model.load_state_dict(...)",
            )
        if _of(tensor, _QUANTIZED):
            raise ConfigError(
                f"{name!r} is quantized ({type(tensor).__name__})",
                mend="give the model as it was before it was quantized, with float32 weights",
            )
        if _of(tensor, _SHARDED):
            raise ConfigError(
                f"{name!r} is spread over several processes ({type(tensor).__name__})",
                mend="gather the full weights, and load them into the plain model: model.load_state_dict(...)",
            )
    for path, layer in backbone.named_modules():
        kind = type(layer).__name__
        what = f"layer {path!r} ({kind})" if path else f"the backbone ({kind})"
        if isinstance(layer, torch.jit.ScriptModule):
            raise ConfigError(
                f"{what} is compiled by TorchScript, and nothing can be put into it",
                mend="give the Python module that torch.jit.script or torch.jit.trace was called with, and load the "
                "weights into it: model.load_state_dict(scripted.state_dict())",
            )
        if _of(layer, _QUANTIZED):
            raise ConfigError(
                f"{what} is quantized ({type(layer).__module__})",
                mend="give the model as it was before it was quantized, with float32 weights; a bundle's own precision "
                "is chosen when it is exported",
            )
        if _of(layer, _PREPARED):
            raise ConfigError(
                f"{what} is prepared for quantization ({type(layer).__module__}), and observes what it computes",
                mend="give the model as it was before torch.ao.quantization prepared it",
            )
        if _of(layer, ("torch.distributed.fsdp", "deepspeed", "fairscale")):
            raise ConfigError(
                f"{what} is spread over several processes",
                mend="gather the full weights, and load them into the plain model: model.load_state_dict(...)",
            )
        if _of(layer, ("opacus",)):
            raise ConfigError(
                f"{what} is a wrapper of opacus",
                mend="give the model inside: model._module; private training on devices is set in the plan",
            )
        if getattr(layer, "max_norm", None) is not None:
            raise ConfigError(
                f"{what} has max_norm, which rewrites the frozen weights at every call",
                mend="normalise the weight once and build the layer without max_norm",
            )


def _no_module(backbone: object) -> str:
    kind = f"{type(backbone).__module__}.{type(backbone).__qualname__}".removeprefix("builtins.")
    return f"the backbone is a {kind}, not an nn.Module"


def _no_module_mend(backbone: object) -> str:
    if isinstance(backbone, Mapping):
        return "build the network and load the weights into it: model.load_state_dict(weights)"
    if isinstance(backbone, str | bytes) or hasattr(backbone, "__fspath__"):
        return "load the network first, and give the nn.Module"
    if type(backbone).__module__.startswith("torch.export"):
        return "give the nn.Module that torch.export.export was called with"
    if isinstance(backbone, type):
        return f"give an object of the class: {backbone.__name__}(...)"
    if hasattr(backbone, "model") and isinstance(getattr(backbone, "model", None), nn.Module):
        return "give the nn.Module inside: .model"
    return "put the function into the forward of an nn.Module that holds its weights"


def not_copied(backbone: nn.Module, error: Exception, memo: Mapping[int, Any]) -> ConfigError:
    """The refusal of a network that cannot be copied; names the attribute."""
    for path, layer in backbone.named_modules():
        for name, value in vars(layer).items():
            if name in ("_modules", "_parameters", "_buffers"):
                continue
            try:
                copy.deepcopy(value, dict(memo))
            except Exception as found:
                where = f"{path}.{name}" if path else name
                if isinstance(value, torch.Tensor):
                    return ConfigError(
                        f"attribute {where!r} of the backbone is a tensor with the history of gradients of an earlier "
                        "forward pass, which cannot be copied",
                        mend="keep nothing from one call to the next; what is to be kept is detached and a buffer: "
                        "self.register_buffer(...)",
                    )
                return ConfigError(
                    f"attribute {where!r} of the backbone ({type(value).__name__}) cannot be copied: {found}",
                    mend="keep only parameters, buffers and plain values as attributes; open files, locks and "
                    "generators are made where they are used",
                )
    return ConfigError(
        f"the backbone {type(backbone).__name__} cannot be copied: {error}",
        mend="keep only parameters, buffers and plain values as attributes",
    )
