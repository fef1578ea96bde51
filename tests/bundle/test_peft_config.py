"""An adapter's settings are understood as peft understands them, change nothing, or are refused by name."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pfl_mobile import Head, LoRA
from pfl_mobile.bundle import peft_config
from pfl_mobile.bundle.peft import export_adapter, export_model, import_model
from pfl_mobile.bundle.peft_config import AdapterConfig
from pfl_mobile.errors import ConfigError, DataError, TensorMismatchError
from pfl_mobile.modules.personalize import personalize
from pfl_mobile.modules.registry import ModuleConfig

if TYPE_CHECKING:
    from collections.abc import Callable


Q_V = [LoRA("re:.*\\.[qv]", rank=4, alpha=3)]


class Block(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.q, self.v, self.up = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.q(x)) * self.v(x) + self.up(x)[..., :8]


class Net(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.layers = nn.ModuleList(Block() for _ in range(3))
        self.classifier = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 5))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.classifier(x)


TOKENS = torch.arange(22).reshape(2, 11) % 11


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def made(
    folder: Path, changes: dict[str, Any], dtype: torch.dtype = torch.float32, **save: Any
) -> torch.Tensor:
    """Save an adapter made by peft; what peft's model with it gives."""
    import peft

    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": ["q", "v"], **changes})
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        theirs = peft.get_peft_model(net(), config).eval()
        for name, p in theirs.named_parameters():
            if "lora_" in name or "modules_to_save" in name or (p.requires_grad and name.endswith("bias")):
                p.add_(0.3 * torch.randn_like(p))
                p.data = p.data.to(dtype).float()
        if dtype is not torch.float32:
            state = {n: v.to(dtype) for n, v in peft.get_peft_model_state_dict(theirs).items()}
            theirs.save_pretrained(folder, state_dict=state, **save)
        else:
            theirs.save_pretrained(folder, **save)
        return theirs(TOKENS)


#: What to change in an adapter that is read, and the modules that it is read into.
UNDERSTOOD: dict[str, tuple[dict[str, Any], list[ModuleConfig]]] = {
    "plain": ({}, Q_V),
    "gaussian": ({"init_lora_weights": "gaussian"}, Q_V),
    "random start": ({"init_lora_weights": False}, Q_V),
    "orthogonal": ({"init_lora_weights": "orthogonal"}, Q_V),
    "mica": ({"init_lora_weights": "mica"}, Q_V),
    "rank stabilized": ({"use_rslora": True, "lora_alpha": 5}, Q_V),
    "alpha of zero": ({"lora_alpha": 0}, Q_V),
    "dropout": ({"lora_dropout": 0.5}, Q_V),
    "DoRA": (
        {"use_dora": True, "target_modules": ["q", "embed"], "use_rslora": True},
        [LoRA(["embed", "*.q"], rank=4, alpha=3, dora=True)],
    ),
    "fan in, fan out": ({"fan_in_fan_out": True}, Q_V),
    "whole paths": ({"target_modules": "layers\\.\\d\\.[qv]"}, Q_V),
    "all linear": (
        {"target_modules": "all-linear"},
        [LoRA(["*.q", "*.v", "*.up", "classifier.[02]"], rank=4)],
    ),
    "embedding": ({"target_modules": ["embed", "q"]}, [LoRA(["embed", "*.q"], rank=4, alpha=1)]),
    "one layer": (
        {"layers_to_transform": 1, "layers_pattern": ["h", "layers"]},
        [LoRA("layers.1.[qv]", rank=4)],
    ),
    "some layers": (
        {"layers_to_transform": [0, 2], "layers_pattern": "layers"},
        [LoRA("layers.[02].[qv]", rank=4)],
    ),
    "excluded": ({"exclude_modules": ["layers.0.q"]}, [LoRA(["layers.[12].q", "*.v"], rank=4)]),
    "ranks": (
        {"rank_pattern": {"layers.0.q": 2, "^layers.1.v": 3}},
        [
            LoRA("layers.0.q", rank=2, alpha=1),
            LoRA("layers.1.v", rank=3),
            LoRA("re:layers\\.([12]\\.q|[02]\\.v)", rank=4),
        ],
    ),
    "alphas": ({"alpha_pattern": {"layers.1.*v": 32, "q": 1}, "use_rslora": True}, Q_V),
    "parameters": ({"target_modules": [], "target_parameters": ["up.weight"]}, [LoRA("*.up", rank=4)]),
    "parameters with patterns": (
        {
            "target_modules": [],
            "target_parameters": ["up.weight"],
            "alpha_pattern": {"layers.1.up.weight": 40, "layers.2.up": 9},
        },
        [LoRA("*.up", rank=4)],
    ),
    "a layer as a whole": ({"modules_to_save": ["classifier"]}, [*Q_V, Head("classifier")]),
    "one of two names": ({"modules_to_save": ["classifier", "score"]}, [*Q_V, Head("classifier")]),
    "a part of a block": ({"modules_to_save": ["classifier.2"]}, [*Q_V, Head("classifier.2")]),
    "biases of the adapted": ({"bias": "lora_only"}, [*Q_V, Head("re:.*\\.[qv]", only="bias")]),
    "biases of the adapted, whole": ({"bias": "lora_only"}, [*Q_V, Head("re:.*\\.[qv]")]),
    "all biases": ({"bias": "all"}, [*Q_V, Head(["*.[qv]", "*.up", "classifier.[02]"], only="bias")]),
    "an embedding as a whole": ({"modules_to_save": ["embed"]}, [*Q_V, Head("embed")]),
}


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_what_is_understood_gives_what_peft_gives(name: str, tmp_path: Path) -> None:
    changes, modules = UNDERSTOOD[name]
    expected = made(tmp_path, changes)
    model = personalize(net(), modules)
    import_model(model, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow  # imports peft
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_read_to_the_last_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    expected = made(tmp_path, {}, dtype)
    model = personalize(net(), Q_V)
    import_model(model, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS), expected, rtol=1e-5, atol=1e-5)


#: Settings that are refused, and what the error names. Those that peft cannot save for this model are written by hand.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    **{s: ({"init_lora_weights": s}, s) for s in ("pissa", "pissa_niter_4", "olora")},
    "dora": ({"use_dora": True}, "has DoRA on 'layers.0.q', and the model has LoRA there"),
    "bias": ({"lora_bias": True}, "lora_bias"),
    "biases of the adapted": ({"bias": "lora_only"}, r"another 'layers\.0\.q\.bias' than the backbone"),
    "all biases": ({"bias": "all"}, r"another 'classifier\.0\.bias' than the backbone"),
    "tokens": ({"trainable_token_indices": {"embed": [1, 2]}}, "trainable_token_indices"),
    "a layer that is frozen here": ({"modules_to_save": ["classifier"]}, "'classifier.0.bias' than the back"),
}


@pytest.mark.slow  # imports peft
@pytest.mark.parametrize("name", REFUSED)
def test_what_would_compute_something_else_is_refused_by_name(name: str, tmp_path: Path) -> None:
    changes, named = REFUSED[name]
    made(tmp_path, changes)
    model = personalize(net(), Q_V)
    start = model.values()
    with pytest.raises(ConfigError, match=named) as error:
        import_model(model, tmp_path)
    assert "merge_and_unload" in error.value.mend
    assert all(torch.equal(value, start[n]) for n, value in model.values().items())


WRITTEN = {
    "CORDA": ({"init_lora_weights": "CORDA"}, "CORDA"),
    "loftq": ({"init_lora_weights": "loftq"}, "loftq"),
    "lora_ga": ({"init_lora_weights": "lora_ga"}, "lora_ga"),
    "a start of tomorrow": ({"init_lora_weights": "sparkle"}, "sparkle"),
    "qalora": ({"use_qalora": True}, "use_qalora"),
    "alora": ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
    "arrow": ({"arrow_config": {"top_k": 2}}, "arrow_config"),
    "bdlora": ({"use_bdlora": {"nblocks": 2}}, "use_bdlora"),
    "kasa with defaults": ({"kasa_config": {}}, "kasa_config"),
    "monteclora": ({"monteclora_config": {"samples": 4}}, "monteclora_config"),
    "velora": ({"velora_config": {"num_groups": 4}}, "velora_config"),
    "megatron": ({"megatron_config": {"a": 1}}, "megatron_config"),
    "replication": ({"layer_replication": [[0, 2]]}, "layer_replication"),
    "tying": ({"ensure_weight_tying": True}, "ensure_weight_tying"),
    "a key of tomorrow": ({"use_sparkle": True}, "use_sparkle"),
    "a number of tomorrow": ({"sparkle": 0.5}, "sparkle"),
    "another method": ({"peft_type": "LOHA"}, "LOHA"),
    "biases of tomorrow": ({"bias": "some"}, "bias='some'"),
    "no method": ({"peft_type": None}, "None"),
    "a layer left out": ({"exclude_modules": ".*0.q"}, "'layers.0.q', but its settings"),
    "a layer not named": ({"target_modules": ["q"]}, "'layers.0.v', but its settings"),
    "an index left out": (
        {"target_modules": ["q", "v"], "layers_to_transform": [0, 1], "layers_pattern": "layers"},
        "'layers.2.q', but its settings",
    ),
    "a whole layer": ({"modules_to_save": ["layers.1"]}, "'layers.1.q', but its settings"),
}


@pytest.fixture
def adapter(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """Writes an adapter with changed settings; gives its folder."""
    model = personalize(net(), Q_V)
    export_model(model, tmp_path)
    config = tmp_path / "adapter_config.json"
    plain = json.loads(config.read_text())

    def write(changes: dict[str, Any]) -> Path:
        config.write_text(json.dumps({**plain, **changes}))
        return tmp_path

    return write


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_by_hand_is_refused_by_name(
    name: str, adapter: Callable[[dict[str, Any]], Path]
) -> None:
    changes, named = WRITTEN[name]
    with pytest.raises(ConfigError, match=named):
        import_model(personalize(net(), Q_V), adapter(changes))


@pytest.mark.slow  # imports peft
def test_other_methods_are_refused_by_name_with_a_way_that_there_is(
    adapter: Callable[[dict[str, Any]], Path],
) -> None:
    import peft
    from peft.tuners.tuners_utils import BaseTuner
    from peft.utils.peft_types import PeftType

    known = {kind.value for kind in PeftType}
    assert (peft_config._OURS.keys() | peft_config._UNMERGEABLE) <= known
    tuners = peft.PEFT_TYPE_TO_TUNER_MAPPING
    assert set(peft_config._READ_TOO) <= known
    for kind in sorted(known - {"LORA", *peft_config._READ_TOO}):
        with pytest.raises(ConfigError, match=f"the adapter is '{kind}', not LORA") as error:
            import_model(personalize(net(), Q_V), adapter({"peft_type": kind}))
        merged = "merge_and_unload" in error.value.mend
        assert merged == (kind not in peft_config._UNMERGEABLE)
        if merged:
            assert issubclass(tuners[PeftType(kind)], BaseTuner), kind
    with pytest.raises(ConfigError) as error:
        import_model(personalize(net(), Q_V), adapter({"peft_type": "LN_TUNING"}))
    assert "train Head on the normalization layers" in error.value.mend


@pytest.mark.parametrize(
    "changes",
    [
        {"r": "four"}, {"r": 0}, {"r": 2.5}, {"r": True}, {"r": None}, {"lora_alpha": "x"}, {"lora_alpha": None},
        {"lora_alpha": float("nan")}, {"use_rslora": "yes"}, {"rank_pattern": [1]}, {"rank_pattern": {"(": 4}},
        {"rank_pattern": {"q": 0}}, {"alpha_pattern": {"q": []}}, {"target_modules": 3}, {"target_modules": "("},
        {"target_modules": [1]}, {"exclude_modules": {"a": 1}}, {"layers_to_transform": ["one"]},
        {"layers_to_transform": True}, {"modules_to_save": ["("]}, {"target_parameters": 5}, {"layers_pattern": ["("]},
        {"r": 2}, {"rank_pattern": {"layers.0.q": 8}},
    ],
)  # fmt: skip
def test_values_of_a_wrong_kind_are_data_errors(
    changes: dict[str, Any], adapter: Callable[[dict[str, Any]], Path]
) -> None:
    said = "rank 2" if changes == {"r": 2} else next(iter(changes))
    if said == "lora_alpha" and isinstance(changes[said], float):  # which no reader of JSON takes
        said = "NaN is not JSON"
    with pytest.raises(DataError, match=said):
        import_model(personalize(net(), Q_V), adapter(changes))


def test_settings_that_are_off_or_of_the_origin_are_passed_over(
    adapter: Callable[[dict[str, Any]], Path],
) -> None:
    off = dict.fromkeys(peft_config._REFUSED) | {
        "use_sparkle": False,
        "sparkles": [],
        "glitter": {},
    }
    origin = {"task_type": "SEQ_CLS", "peft_version": "9.9", "revision": "main", "auto_mapping": {"a": "b"}}
    import_model(personalize(net(), Q_V), adapter(off | origin))


@pytest.mark.slow  # imports peft
def test_every_setting_of_the_installed_peft_is_known() -> None:
    import peft

    known = peft_config._HARMLESS | peft_config._READ | peft_config._REFUSED.keys()
    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert fields - known == set()
    for method, made in (("IA3", peft.IA3Config), ("PROMPT_TUNING", peft.PromptTuningConfig)):
        fields = {field.name for field in dataclasses.fields(made)}
        more = peft_config._HARMLESS_TOO[method] | peft_config._READ_TOO[method]
        assert fields - known == more, method


def test_the_page_about_adapters_names_every_setting_that_changes_what_is_computed() -> None:
    page = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text()
    plain = {"peft_type", "r", "lora_alpha", "target_modules"}
    starts = {*peft_config._PLAIN_STARTS, *peft_config._CHANGED_BACKBONE}
    more = set().union(*peft_config._READ_TOO.values()) - {"num_virtual_tokens", "num_transformer_submodules"}
    for name in (more | peft_config._READ | peft_config._REFUSED.keys() | starts) - plain:
        assert name in page, name


PATHS = st.lists(st.sampled_from(["layers", "0", "1", "q", "v", "attn", "experts"]), min_size=1, max_size=5)
ENDINGS = st.lists(st.sampled_from(["q", "v", "attn.q", "layers.0.q", "layers.1.attn.v", "1"]), max_size=3)


@settings(max_examples=300, deadline=None)
@given(
    path=PATHS.map(".".join),
    targets=ENDINGS | st.sampled_from([".*q", "layers.0.*", "(.*\\.)?v"]),
    excluded=ENDINGS | st.sampled_from([".*0.*", "q"]),
    saved=ENDINGS,
    layers=st.none() | st.integers(0, 1) | st.lists(st.integers(0, 1), max_size=2),
    pattern=st.none() | st.sampled_from(["layers", "experts"]) | st.just(["experts", "layers"]),
    ranks=st.dictionaries(st.sampled_from(["q", "^layers.0.q", "attn.*", "v"]), st.integers(1, 9)),
)
def test_layers_and_patterns_are_chosen_as_peft_chooses(
    tmp_path_factory: pytest.TempPathFactory,
    path: str,
    targets: Any,
    excluded: Any,
    saved: Any,
    layers: Any,
    pattern: Any,
    ranks: Any,
) -> None:
    import peft

    given_ = {
        "target_modules": targets,
        "exclude_modules": excluded,
        "modules_to_save": saved,
        "layers_to_transform": layers if isinstance(targets, list) else None,
        "layers_pattern": pattern if isinstance(targets, list) and layers is not None else None,
        "rank_pattern": ranks,
    }
    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils.other import get_pattern_key

    theirs = peft.LoraConfig(**given_)
    # As peft writes it: sets become lists.
    file = tmp_path_factory.getbasetemp() / "config.json"
    file.write_text(json.dumps({**given_, "peft_type": "LORA"}))
    ours = AdapterConfig.read(file)
    found = check_target_module_exists(theirs, path)
    chosen = bool(found) and type(found).__name__ != "_ExcludedModule"
    assert ours.adapts(path) == chosen
    assert ours.rank_of(path) == ranks.get(get_pattern_key(list(ranks), path), 8)


def test_a_converted_pissa_adapter_is_plain(tmp_path: Path) -> None:
    import peft

    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["q", "v"], init_lora_weights="pissa")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(net(), config).eval()
        theirs.peft_config["default"].init_lora_weights = True
        theirs.save_pretrained(tmp_path / "start")
        theirs.peft_config["default"].init_lora_weights = "pissa"
        for name, p in theirs.named_parameters():
            if "lora_" in name:
                p.add_(0.3 * torch.randn_like(p))
        expected = theirs(TOKENS)
        theirs.save_pretrained(
            tmp_path / "adapter", path_initial_model_for_weight_conversion=str(tmp_path / "start")
        )
        model = personalize(net(), [LoRA("re:.*\\.[qv]", rank=8)])
        import_model(model, tmp_path / "adapter")
        torch.testing.assert_close(model(TOKENS), expected, rtol=1e-4, atol=1e-4)


def test_frozen_tensors_kept_with_an_adapter_must_be_the_backbones(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    export_model(personalize(net(), Q_V), tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    tensors, own = load_file(weights), net().state_dict()["embed.weight"]
    key = "base_model.model.embed.base_layer.weight"
    save_file({**tensors, key: own}, weights)
    import_model(personalize(net(), Q_V), tmp_path)
    save_file({**tensors, key: own + 1}, weights)
    with pytest.raises(ConfigError, match=r"another 'embed\.weight' than the backbone"):
        import_model(personalize(net(), Q_V), tmp_path)
    save_file(
        {**tensors, "layers.0.q.lora_A.weight": tensors["base_model.model.layers.0.q.lora_A.weight"].clone()},
        weights,
    )
    with pytest.raises(DataError, match="twice"):
        import_model(personalize(net(), Q_V), tmp_path)
    save_file({n: v * float("nan") for n, v in tensors.items()}, weights)
    with pytest.raises(DataError, match="NaN"):
        import_model(personalize(net(), Q_V), tmp_path)
    save_file({n: v.to(torch.float8_e4m3fn) for n, v in tensors.items()}, weights)
    with pytest.raises(DataError, match="F8_E4M3"):
        import_model(personalize(net(), Q_V), tmp_path)


@pytest.mark.slow  # imports peft
@pytest.mark.parametrize("target", ["embed", "out"])
def test_tied_layers_are_saved_under_either_name(target: str, tmp_path: Path) -> None:
    import peft

    class Tied(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embed, self.out = nn.Embedding(11, 8), nn.Linear(8, 11, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.out(torch.tanh(self.embed(tokens)))

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(Tied(), peft.LoraConfig(r=2, target_modules=[target]))
        for name, p in theirs.named_parameters():
            if "lora_" in name:
                p.add_(0.3 * torch.randn_like(p))
        theirs.save_pretrained(tmp_path)
        file = tmp_path / "adapter_model.safetensors"
        from safetensors.torch import load_file, save_file

        weight = {f"base_model.model.{target}.base_layer.weight": Tied().embed.weight.clone()}
        save_file({**load_file(file), **weight}, file)  # as peft does where the model is one of transformers
        model = personalize(Tied(), [LoRA(target, rank=2)])
        import_model(model, tmp_path)
        torch.testing.assert_close(model(TOKENS), theirs(TOKENS), rtol=1e-5, atol=1e-5)


def test_pickled_adapters_are_not_opened(tmp_path: Path) -> None:
    export_model(personalize(net(), Q_V), tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(DataError, match="pickle") as error:
        import_model(personalize(net(), Q_V), tmp_path)
    assert "safe_serialization=True" in error.value.mend


@pytest.mark.slow  # imports peft
@pytest.mark.parametrize("target", ["classifier", "classifier.2", "embed"])
def test_layers_trained_as_a_whole_travel_both_ways(target: str, tmp_path: Path) -> None:
    import peft

    modules = [*Q_V, Head(target)]
    model = personalize(net(), modules)
    model.load_values({n: 0.3 * torch.randn_like(v) for n, v in model.values().items()})
    export_model(model, tmp_path)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(net(), str(tmp_path)).eval()
        torch.testing.assert_close(theirs(TOKENS), model(TOKENS), rtol=1e-5, atol=1e-5)
    other = personalize(net(), modules)
    import_model(other, tmp_path)
    assert all(torch.equal(value, other.values()[n]) for n, value in model.values().items())


def test_an_embedding_with_as_many_words_as_the_rank(tmp_path: Path) -> None:
    import peft

    class Small(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embed, self.head = nn.Embedding(4, 6), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.embed(x))

    model = personalize(Small(), [LoRA(["embed", "head"], rank=4)])
    model.load_values({n: torch.randn_like(v) for n, v in model.values().items()})
    export_model(model, tmp_path)
    x = torch.arange(4)[None]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(Small(), str(tmp_path)).eval()
        torch.testing.assert_close(theirs(x), model(x), rtol=1e-5, atol=1e-5)
    values = {n: v.numpy() for n, v in model.values().items()}
    owners = {i.name: i.module for i in model.device_tensors()}
    with pytest.raises(ConfigError, match="whether 'embed' is an embedding"):
        export_adapter(tmp_path, values, owners, model.modules_table)
    # LoRA on the embedding's weight as a parameter has the same shapes and another meaning.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(r=4, target_modules=["head"], target_parameters=["embed.weight"])
        peft.get_peft_model(Small(), config).save_pretrained(tmp_path)
    with pytest.raises(TensorMismatchError, match="not what peft keeps for an embedding"):
        import_model(personalize(Small(), [LoRA(["embed", "head"], rank=4)]), tmp_path)


def test_what_peft_would_compute_otherwise_is_refused_both_ways(tmp_path: Path) -> None:
    class Shared(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.first = self.second = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(torch.tanh(self.first(x)))

    model = personalize(Shared(), [LoRA("first", rank=2)])
    for act in (export_model, import_model):
        with pytest.raises(ConfigError, match="'first' is also 'second'"):
            act(model, tmp_path)
    both = personalize(
        net(), [LoRA("classifier.0", rank=2), Head("classifier.2"), Head("layers.0", name="other")]
    )
    export_model(both, tmp_path / "apart")
    clash = personalize(net(), [LoRA("layers.0.q", rank=2), Head("layers.0.q")])
    with pytest.raises(ConfigError, match="trained as a whole"):
        export_model(clash, tmp_path / "clash")
    assert not (tmp_path / "clash").exists()


@pytest.mark.slow  # imports peft
@settings(max_examples=100, deadline=None)
@given(path=PATHS.map(".".join), feedforward=ENDINGS | st.sampled_from([".*q", "layers.0.*"]))
def test_inputs_are_scaled_where_peft_scales_them(path: str, feedforward: Any) -> None:
    import peft
    from peft.tuners.ia3.model import IA3Model

    theirs = peft.IA3Config(target_modules="all-linear", feedforward_modules=feedforward)
    ours = AdapterConfig(
        method="IA3", feedforward=feedforward if isinstance(feedforward, str) else tuple(feedforward)
    )
    assert ours.scales_input(path) == IA3Model._check_target_module_feedforward(theirs, path)
