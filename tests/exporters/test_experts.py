"""Mixtures of experts compute what transformers computes, and their weights are stored as others are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from pfl_exporters.hugging_face import Shape, by_leaf, deployment
from pfl_mobile import LoRA
from pfl_mobile.errors import PflError
from pfl_mobile.programs.weights import WeightFormat, weights_stored
from tests.exporters.hugging_face import saved

_SIZE: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "moe_intermediate_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8, "max_position_embeddings": 32,
    "num_local_experts": 5, "num_experts": 5, "n_routed_experts": 5, "num_experts_per_tok": 2, "pad_token_id": 1,
    "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
#: Architectures that differ in how experts are gated, biased, stored and chosen.
MODELS = {
    "Mixtral": (hf.MixtralConfig, {}),
    "Qwen3Moe": (hf.Qwen3MoeConfig, {}),
    "GptOss": (hf.GptOssConfig, {"sliding_window": 4}),
    "NemotronH": (hf.NemotronHConfig, {"layers_block_type": ["moe"], "moe_shared_expert_intermediate_size": 16}),
    "DeepseekV3": (
        hf.DeepseekV3Config,
        {
            "kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
            "n_group": 1, "topk_group": 1, "first_k_dense_replace": 0,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_experts_give_what_transformers_gives(name: str, tmp_path: Path) -> None:
    made, more = MODELS[name]
    torch.manual_seed(0)
    net = getattr(hf, f"{name}ForCausalLM")(made(**_SIZE, **more)).eval()
    with torch.no_grad():  # biases start as zeros
        for value in net.parameters():
            value.add_(0.05 * torch.randn_like(value))
    d = deployment(saved(tmp_path / "m", net), [LoRA(by_leaf(["lm_head"]), rank=2)], shape=Shape(2, 9))
    tokens = torch.randint(0, 250, (4, 9))
    torch.testing.assert_close(d.model(tokens), net(tokens, use_cache=False).logits, rtol=1e-5, atol=1e-5)
    with weights_stored(d.model, WeightFormat("int8")) as stored:
        assert stored is not None
        experts = [key for key in stored.tensors if ".experts." in key]
        assert len(experts) == 2 * 5, stored.tensors
    with pytest.raises(PflError, match="experts"):
        deployment(tmp_path / "m", [LoRA("*.experts.down_proj.0", rank=2)], shape=Shape(2, 9))
