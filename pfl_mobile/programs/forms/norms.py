"""Normalization of single examples, from means of plain arithmetic.

PyTorch traces ``instance_norm`` as batch norm in training mode over a batch that was reshaped, which neither
ExecuTorch's kernels nor Core ML have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def _instance_norm(
    input: Tensor,  # noqa: A002
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,  # noqa: ARG001
    eps: float = 1e-5,
) -> Tensor | None:
    """Instance norm (Ulyanov and others 2016) of [B, C, *]; None where statistics would be written to."""
    per_channel = [1, -1] + [1] * (input.dim() - 2)
    if use_input_stats:
        if running_mean is not None or running_var is not None or input.dim() < 3:
            return None
        dims = list(range(2, input.dim()))
        centred = input - input.mean(dims, keepdim=True)
        out = centred * torch.rsqrt((centred * centred).mean(dims, keepdim=True) + eps)
    elif running_mean is None or running_var is None:
        return None
    else:
        scale = torch.rsqrt(running_var + eps).reshape(per_channel)
        out = (input - running_mean.reshape(per_channel)) * scale
    if weight is not None:
        out = out * weight.reshape(per_channel)
    return out if bias is None else out + bias.reshape(per_channel)


FORMS: dict[Any, Callable[..., Any]] = {F.instance_norm: _instance_norm}
