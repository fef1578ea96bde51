"""The mixture of experts: which experts count, and whose the gate is."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pfl_mobile.errors import ConfigError
from pfl_mobile.modules.experts import PERSONAL_GATE, Experts, gate_shares
from pfl_mobile.modules.personalize import personalize
from tests.backbones import BACKBONES


@settings(deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=2, max_size=6), st.integers(1, 6))
def test_exactly_top_k_experts_count(scores: list[int], k: int) -> None:
    k = min(k, len(scores))
    logits = torch.tensor([scores], dtype=torch.float32)
    found = gate_shares(logits, k)[0]
    best = sorted(range(len(scores)), key=lambda e: (-scores[e], e))[:k]
    assert [e for e in range(len(scores)) if found[e] > 0] == sorted(best)
    torch.testing.assert_close(found[best], torch.softmax(logits[0], -1)[best])


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_the_output_is_that_of_the_chosen_experts_one_by_one(top_k: int) -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(5, 3))
    model = personalize(layer, [Experts("0", count=4, rank=2, top_k=top_k)])
    values = {n: torch.randn_like(v) for n, v in model.values().items()}
    model.load_values(values)
    x = torch.randn(2, 7, 5)
    want = layer(x).detach().clone()
    for place in [(i, j) for i in range(2) for j in range(7)]:
        share = torch.softmax(F.linear(x[place], values["0.expert_gate"], values["0.expert_gate_bias"]), -1)
        for e in share.topk(top_k).indices.tolist():
            a, b = values["0.expert_A"][2 * e : 2 * e + 2], values["0.expert_B"][:, 2 * e : 2 * e + 2]
            want[place] += share[e] * (b @ (a @ x[place]))
    torch.testing.assert_close(model(x).detach(), want, rtol=1e-5, atol=1e-5)


def test_experts_that_do_not_count_get_no_gradient_and_the_gate_always_does() -> None:
    torch.manual_seed(0)
    model = personalize(nn.Sequential(nn.Linear(5, 3)), [Experts("0", count=3, rank=2, top_k=1)])
    values = {n: torch.randn_like(v) for n, v in model.values().items()}
    values["0.expert_gate"].zero_()
    values["0.expert_gate_bias"].copy_(torch.tensor([0.0, 5.0, 1.0]))
    model.load_values(values)
    model(torch.randn(4, 5)).square().sum().backward()
    gradients = {n: p.grad for n, p in zip(sorted(values), model.train_parameters(), strict=True)}
    chosen = gradients["0.expert_A"].abs().sum(1) > 0
    assert chosen.tolist() == [False, False, True, True, False, False]
    assert gradients["0.expert_gate"].abs().sum() > 0


def test_only_the_gate_is_personal() -> None:
    backbone, example = BACKBONES["decoder"]()
    model = personalize(backbone, [Experts("*.attn.[qv]")], roles=PERSONAL_GATE, example=example)
    for info in model.device_tensors():
        assert (info.role == "personal") == ("expert_gate" in info.name)


@pytest.mark.parametrize("bad", [{"count": 1}, {"top_k": 0}, {"top_k": 5}, {"rank": 0}])
def test_impossible_settings_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Experts("0", **bad)  # type: ignore[arg-type]
