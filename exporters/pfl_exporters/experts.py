"""Mixtures of experts of transformers, computed without asking which expert a token goes to.

Their library sorts tokens by expert, or fetches each token's expert, and both ask for values: how many rows an expert
gets, or a copy of its weights for each token. A graph of fixed shapes computes every expert for every token, and
weighs those that were not chosen with zero (Shazeer and others 2017, equation 1, as it is written there). It is as
exact, takes no memory but the activations, and costs the experts' number over those chosen more.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

_NAME = "every_expert"


def use_every_expert(config: Any) -> None:
    """Have models of this configuration of transformers computed in that way, where they have experts.

    Before version 5 each model of transformers brings a loop of its own, which the export refuses by its line.
    """
    if importlib.util.find_spec("transformers.integrations.moe") is None:
        return
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(_NAME, every_expert)
    config._experts_implementation = _NAME


def one_by_one(model: nn.Module) -> None:
    """Give each expert layers of its own, in place of one tensor with the weights of all.

    Weights can then be stored in fewer bits, and no program holds a copy of one. The layers are not called, so no
    pattern that means all layers finds them: experts stay frozen, as in adapters of peft.
    """
    for layer in model.modules():
        if getattr(getattr(layer, "config", None), "_experts_implementation", None) != _NAME:
            continue
        if not hasattr(layer, "has_gate") or not hasattr(layer, "down_proj"):
            continue
        for name in (_first(layer), "down_proj"):
            weights, biases = (layer._parameters.pop(leaf, None) for leaf in (name, f"{name}_bias"))
            assert weights is not None
            turned = weights.mT if layer.is_transposed else weights
            layer.add_module(
                name,
                nn.ModuleList(
                    _linear(turned[e], None if biases is None else biases[e]) for e in range(len(turned))
                ),
            )


def every_expert(experts: Any, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of what the chosen experts make of each token.

    Args:
        experts: layer of transformers whose experts have layers of their own.
        hidden: [tokens, width].
        chosen: experts of each token, [tokens, k].
        weights: of those, [tokens, k].

    Returns:
        [tokens, width].
    """
    total = torch.zeros_like(hidden)
    for expert, (first, last) in enumerate(
        zip(getattr(experts, _first(experts)), experts.down_proj, strict=True)
    ):
        made = nn.functional.linear(hidden, first.weight, first.bias)
        made = experts._apply_gate(made) if experts.has_gate else experts.act_fn(made)
        made = nn.functional.linear(made, last.weight, last.bias)
        if experts.has_post_expert_norm:
            made = experts.post_expert_norm(made)
        total = total + made * (weights * (chosen == expert)).sum(1, keepdim=True)
    return total


def _first(experts: Any) -> str:
    return "gate_up_proj" if experts.has_gate else "up_proj"


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    out, into = weight.shape
    made = nn.Linear(into, out, bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return made
