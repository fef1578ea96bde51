"""Studies made of another one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pfl_mobile import LoRA, PersonalizedModel, personalize
from pfl_mobile.errors import ConfigError
from pfl_mobile.strategies import create
from pfl_mobile.study import Study
from pfl_mobile.study.variants import (
    all_shared,
    baseline,
    for_strategy,
    inserts,
    personal_from_scratch,
    with_weights,
)
from tests.study.small import Net, study


def roles(one: Study, prefix: str = "") -> set[str]:
    return {t.role for t in one.model.device_tensors() if t.name.startswith(prefix)}


def test_split_layers_are_personal_only_with_strategies_that_need_them() -> None:
    base = study("fedper", split=["head"])
    assert (roles(base, "head"), roles(base, "body")) == ({"personal"}, {"shared"})
    for other in (base.replace(strategy="ditto"), baseline(base), for_strategy(base, "fedavg")):
        assert roles(other) == {"shared"}
        assert not personal_from_scratch(other)
        assert personal_from_scratch(for_strategy(other, "fedrep"))
    named = base.replace(strategy="ditto", personal=["body"])
    assert roles(named, "body") == {"personal"}


def test_layers_that_were_named_are_shared_and_the_others_stay_frozen() -> None:
    found = all_shared(study("fedper", shared=["body"], personal=["head"]), "ditto", seed=4)
    assert (found.strategy_name, found.seed, roles(found)) == ("ditto", 4, {"shared"})
    assert len(all_shared(study("fedper", personal=["head"])).model.device_tensors()) == 4
    assert len(all_shared(study(shared=["body"])).model.device_tensors()) == 2


def model() -> PersonalizedModel:
    return personalize(Net(), [LoRA("body.0", rank=2, name="own", role="personal")])


@pytest.mark.parametrize("given", [model, model()], ids=["made", "given"])
def test_modules_of_a_personalized_model_are_shared_in_a_copy(given: object) -> None:
    one = Study(given, study().data, "local", local=study().local)  # type: ignore[arg-type]
    assert not personal_from_scratch(one)
    assert roles(baseline(one)) == {"shared"}
    assert roles(one) == {"personal"}
    assert not inserts(one, create("lora"))


def test_a_strategy_that_inserts_modules_gets_the_plain_model() -> None:
    one = study("fedper", personal=["head"])
    found = for_strategy(one, "lora")
    assert inserts(found)
    assert not inserts(one)
    assert found.settings["personal"] is None


def test_weights_are_those_of_the_start() -> None:
    values = {"head.bias": np.arange(3, dtype=np.float32)}
    one = study()
    found = with_weights(one, values)
    assert torch.equal(found.model.values()["head.bias"], torch.arange(3.0))
    assert torch.equal(found.model.values()["head.weight"], one.model.values()["head.weight"])
    with pytest.raises(ConfigError, match=r"'head\.bais'"):
        with_weights(one, {"head.bais": values["head.bias"]})
