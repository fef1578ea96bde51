"""What only adapters do."""

from __future__ import annotations

import pytest

from pfl_mobile import Adapter
from pfl_mobile.errors import ConfigError
from pfl_mobile.modules.personalize import personalize
from tests.backbones import encoder


def test_adapter_width_comes_from_the_type_the_setting_or_the_example() -> None:
    backbone, example = encoder()
    config = Adapter("re:blocks\\.\\d", size=2)
    with pytest.raises(ConfigError, match=r"output size of layer 'blocks\.0' \(Block\) is not known"):
        personalize(backbone, [config])
    names = personalize(backbone, [config], example=example).values()
    assert names["blocks.0.adapter_up"].shape == (16, 2)
    given = personalize(backbone, [Adapter("re:blocks\\.\\d", size=2, width=16)]).values()
    assert given.keys() == names.keys()
    with pytest.raises(ConfigError, match="width=5"):
        personalize(backbone, [Adapter("re:blocks\\.\\d", width=5)], example=example)
    with pytest.raises(ConfigError, match="width=5"):
        personalize(backbone, [Adapter("*.up", width=5)])
