"""Adapters written here load in the real peft and give the same output, and the other way round."""

from __future__ import annotations

import json
import re
import warnings
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from pfl_mobile import Gate, Head, LoRA
from pfl_mobile.bundle.peft import export_adapter, export_model, import_adapter, import_model
from pfl_mobile.errors import ConfigError, DataError, TensorMismatchError
from pfl_mobile.modules.personalize import PersonalizedModel, personalize
from tests.backbones import BACKBONES, decoder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


CASES = {
    "mlp": [LoRA("hidden.0", rank=2, alpha=8), LoRA("head", rank=3)],
    "sensor": [LoRA(("first", "head"), rank=2, alpha=4)],
    "cnn": [LoRA(("features.0", "features.3", "features.6"), rank=8)],
    "decoder": [LoRA(("embed", "*.attn.[qv]"), rank=4, alpha=2)],
    "modern_decoder": [LoRA("re:.*\\.(q|v|up|down)", rank=2)],
    "lstm": [LoRA(("embed", "proj", "head"), rank=2)],
    "dora": [LoRA(("embed", "*.attn.[qv]"), rank=4, alpha=2, dora=True), LoRA("head", rank=2, dora=True)],
    "dora of convolutions": [LoRA(("first", "head"), rank=2, alpha=4, dora=True)],
}


def stock() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    return nn.Sequential(layer, nn.Linear(8, 3)).eval(), (torch.randn(2, 5, 8),)


MAKES = {**BACKBONES, "dora": decoder, "dora of convolutions": BACKBONES["sensor"]}


def trained(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...], PersonalizedModel]:
    backbone, example = MAKES[name]()
    model = personalize(backbone, CASES[name], example=example)
    model.load_values({n: 0.3 * v + 0.3 * torch.randn_like(v) for n, v in model.values().items()})
    return backbone, example, model


@pytest.fixture(autouse=True)
def without_the_fast_path() -> Iterator[None]:
    """PyTorch's stock encoder reads the weights of its layers where nothing is trained, and so passes over peft's."""
    found = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(found)


def load(backbone: nn.Module, folder: Path) -> nn.Module:
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(backbone, str(folder)).eval()


@pytest.mark.parametrize("name", CASES)
def test_real_peft_gives_the_same_output(name: str, tmp_path: Path) -> None:
    backbone, example, model = trained(name)
    export_model(model, tmp_path / "adapter", base_model=name)
    with torch.no_grad():
        expected, plain = model(*example), backbone(*example)
        theirs = load(backbone, tmp_path / "adapter")
        torch.testing.assert_close(theirs(*example), expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(expected, plain)


@pytest.mark.parametrize("name", CASES)
def test_adapter_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    backbone, _, model = trained(name)
    export_model(model, tmp_path)
    other = personalize(backbone, CASES[name])
    import_model(other, tmp_path)
    for key, value in model.values().items():
        assert torch.equal(value, other.values()[key])


def test_adapter_made_by_peft_is_read_with_its_own_scale(tmp_path: Path) -> None:
    import peft

    backbone, example = decoder()
    config = peft.LoraConfig(
        r=4, lora_alpha=12, use_rslora=True, target_modules=["q", "v", "embed"], alpha_pattern={"embed": 5}
    )
    model = personalize(backbone, [LoRA(("embed", "*.attn.[qv]"), rank=4)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(backbone, config).eval()
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if "lora_" in name:
                p.copy_(0.3 * torch.randn_like(p))
        theirs.save_pretrained(tmp_path)
        import_model(model, tmp_path)
        torch.testing.assert_close(model(*example), theirs(*example), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("targets", [["self_attn"], "all-linear", ["self_attn", "out_proj"]], ids=str)
def test_attention_adapted_by_peft(targets: list[str] | str, tmp_path: Path) -> None:
    """peft adapts both projections of an attention, and passes over its output layer where that is named alone."""
    import peft

    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=targets, rank_pattern={"self_attn": 3})
    modules = [LoRA("0.self_attn", rank=3)] if "self_attn" in targets else [LoRA(["0.linear?", "1"], rank=2)]
    backbone, example = stock()
    model = personalize(backbone, modules)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(stock()[0], config).eval()
        for name, p in theirs.named_parameters():
            if "lora_" in name:
                p.copy_(0.3 * torch.randn_like(p))
        theirs.save_pretrained(tmp_path)
        import_model(model, tmp_path)
        torch.testing.assert_close(model(*example), theirs(*example), rtol=1e-5, atol=1e-5)


def test_attention_of_a_peft_that_is_not_known_is_refused(tmp_path: Path) -> None:
    import peft

    backbone, _ = stock()
    model = personalize(backbone, [LoRA("0.self_attn", rank=2)])
    with pytest.raises(ConfigError, match="depends on its version"):
        export_model(model, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(r=2, target_modules=["self_attn"])
        peft.get_peft_model(stock()[0], config).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    settings = json.loads(file.read_text())
    for version in ("0.21.3.dev0", "0.22", "1.0.0"):
        file.write_text(json.dumps({**settings, "peft_version": version}))
        with pytest.raises(ConfigError, match=f"saved by peft {re.escape(version)}"):
            import_model(model, tmp_path)
    for version in (None, "0.14.0", "0.21.2"):
        file.write_text(json.dumps({**settings, "peft_version": version}))
        import_model(model, tmp_path)


def test_recurrent_layers_are_refused_by_name(tmp_path: Path) -> None:
    model = personalize(BACKBONES["lstm"]()[0], [LoRA(["rnn", "head"], rank=2)])
    with pytest.raises(ConfigError, match="'rnn' is a recurrent layer"):
        export_model(model, tmp_path)


def test_low_rank_and_its_lengths_are_not_mixed(tmp_path: Path) -> None:
    backbone, _ = decoder()
    mixed = personalize(backbone, [LoRA("embed", rank=2, dora=True), LoRA("*.attn.q", rank=2)])
    with pytest.raises(ConfigError, match="some layers have LoRA and others DoRA"):
        export_model(mixed, tmp_path)
    dora = personalize(backbone, [LoRA("*.attn.q", rank=2, dora=True)])
    export_model(personalize(backbone, [LoRA("*.attn.q", rank=2)]), tmp_path)
    with pytest.raises(TensorMismatchError, match=r"no 'blocks\.0\.attn\.q\.lora_magn"):
        import_model(dora, tmp_path)
    export_model(dora, tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "use_dora": False}))
    with pytest.raises(ConfigError, match="but not use_dora"):
        import_model(dora, tmp_path)


@pytest.mark.slow  # imports peft
def test_target_is_the_whole_path_not_its_ending(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inner = nn.ModuleDict({"head": nn.Linear(4, 4)})

    class Two(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = inner, nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.inner["head"](x))

    backbone = Two()
    model = personalize(backbone, [LoRA("head", rank=2)])
    model.load_values({n: torch.randn_like(v) for n, v in model.values().items()})
    export_model(model, tmp_path)
    x = torch.randn(3, 4)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(load(backbone, tmp_path)(x), expected)


def test_manifest_and_numpy_values_are_enough(tmp_path: Path) -> None:
    _, _, model = trained("decoder")
    values = {n: v.numpy() for n, v in model.values().items()}
    owners = {i.name: i.module for i in model.device_tensors()}
    table = json.loads(json.dumps(model.modules_table))
    export_adapter(tmp_path, values, owners, table)
    back = import_adapter(tmp_path, {n: v.shape for n, v in values.items()}, owners, table)
    assert back.keys() == values.keys()
    assert all(np.array_equal(back[n], values[n]) for n in values)


def test_what_peft_cannot_say_is_refused(tmp_path: Path) -> None:
    backbone, _ = BACKBONES["sensor"]()
    dilated = personalize(backbone, [LoRA("second", rank=2)])
    with pytest.raises(ConfigError, match="'second' has a dilation"):
        export_model(dilated, tmp_path)
    values = {n: v.numpy() for n, v in dilated.values().items()}
    owners = {i.name: i.module for i in dilated.device_tensors()}
    with pytest.raises(ConfigError, match="whether the convolution 'second'"):
        export_adapter(tmp_path, values, owners, dilated.modules_table)
    with pytest.raises(ConfigError, match="the gate on 'first' is on a Conv1d"):
        export_model(personalize(backbone, [Gate("first")]), tmp_path)
    with pytest.raises(ConfigError, match="no LoRA tensors, no gates and no prompt"):
        export_model(personalize(backbone, [Head("head")]), tmp_path)
    assert not list(tmp_path.iterdir())


def test_wrong_adapters_are_refused_and_change_nothing(tmp_path: Path) -> None:
    backbone, _, model = trained("decoder")
    start = model.values()
    with pytest.raises(DataError, match=r"has no adapter_config\.json"):
        import_model(model, tmp_path)
    export_model(model, tmp_path)
    with pytest.raises(TensorMismatchError, match="in the adapter"):
        import_model(personalize(backbone, [LoRA(("embed", "*.attn.[qv]"), rank=3)]), tmp_path)
    with pytest.raises(TensorMismatchError, match="the model has no"):
        import_model(personalize(backbone, [LoRA("embed", rank=4)]), tmp_path)
    with pytest.raises(TensorMismatchError, match="tensors are missing"):
        import_model(personalize(backbone, [LoRA(("embed", "*.attn.[qkv]"), rank=4)]), tmp_path)
    weights, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    settings = json.loads(config.read_text())
    for change, text in (({"peft_type": "LOHA"}, "LOHA"), ({"lora_bias": True}, "lora_bias")):
        config.write_text(json.dumps({**settings, **change}))
        with pytest.raises(ConfigError, match=text):
            import_model(model, tmp_path)
    config.write_text(json.dumps(settings))
    tensors = load_file(weights)
    save_file({**tensors, "base_model.model.embed.bias": np.zeros(3, np.float32)}, weights)
    with pytest.raises(DataError, match="no LoRA tensor"):
        import_model(model, tmp_path)
    weights.write_bytes(weights.read_bytes()[:-7])
    with pytest.raises(DataError, match="damaged"):
        import_model(model, tmp_path)
    assert all(torch.equal(value, start[name]) for name, value in model.values().items())
