"""Attentions of PyTorch under examples that are padding, and masks that nobody may look into."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pfl_mobile import Head
from pfl_mobile.modules.personalize import personalize

LENGTHS = torch.tensor([4, 2, 0])
PADDING = torch.arange(4) >= LENGTHS[:, None]
FORMS = {"bool": PADDING, "float": torch.zeros(3, 4).masked_fill(PADDING, float("-inf"))}


class Pool(nn.Module):  # type: ignore[misc]
    def __init__(self, by: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention, self.by = nn.MultiheadAttention(8, 2, batch_first=True), by

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        if self.by == "place":
            return self.attention(x, x, x, padding)[0]
        if self.by == "place, asked":
            return self.attention(x, x, x, padding, True)[0]
        return self.attention(x, x, x, key_padding_mask=padding)[0]


@pytest.mark.parametrize("by", ["name", "place", "place, asked"])
@pytest.mark.parametrize("form", FORMS)
def test_an_example_of_padding_only_gives_numbers_and_moves_no_other(form: str, by: str) -> None:
    net, x = Pool(by), torch.randn(3, 4, 8)
    model = personalize(net.eval(), [Head("attention")])
    found, plain = model(x, FORMS[form]), net(x, FORMS[form])
    assert bool(found.isfinite().all())
    assert not bool(plain[2].isfinite().any())
    torch.testing.assert_close(found[:2], plain[:2])
    found[:2].square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.train_parameters())


class Stack(nn.Module):  # type: ignore[misc]
    def __init__(self, hint: bool | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), 1)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 8, batch_first=True), 1)
        self.hint = hint

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        memory = self.encoder(x, mask, is_causal=self.hint)
        by_place = self.decoder(x, memory, mask, None, None, None, self.hint)
        return by_place + self.decoder(x, memory, tgt_mask=mask)


CAUSAL = nn.Transformer.generate_square_subsequent_mask(4)


@pytest.mark.parametrize("hint", [None, True])
@pytest.mark.parametrize("mask", [CAUSAL, CAUSAL.T, CAUSAL < 0], ids=["causal", "backward", "bool"])
def test_masks_count_and_are_not_looked_into(mask: Tensor, hint: bool | None) -> None:
    if hint and mask is not CAUSAL:
        pytest.skip("the hint would be wrong")
    net, x = Stack(hint).eval(), torch.randn(2, 4, 8)
    model = personalize(net, [Head("encoder.layers.0.linear1")])
    torch.testing.assert_close(model(x, mask), net(x, mask), rtol=1e-5, atol=1e-5)
    traced = torch.fx.experimental.proxy_tensor.make_fx(model)(x, mask)
    torch.testing.assert_close(traced(x, mask), net(x, mask), rtol=1e-5, atol=1e-5)
