"""What only gates do."""

from __future__ import annotations

import torch

from pfl_mobile import Gate
from pfl_mobile.modules.personalize import personalize
from tests.backbones import sensor


def test_gate_multiplies_features() -> None:
    backbone, (x,) = sensor()
    model = personalize(backbone, [Gate("first")])
    scale = torch.rand(8)
    model.load_values({"first.gate_scale": scale})
    with torch.no_grad():
        backbone.first.weight.mul_(scale[:, None, None])
        backbone.first.bias.mul_(scale)
        # the model uses the same storage, so undo before its run
        expected = backbone(x)
        backbone.first.weight.div_(scale[:, None, None])
        backbone.first.bias.div_(scale)
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
