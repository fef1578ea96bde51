"""What a finished study hands out: no row of a user, and no values of a group of few."""

from __future__ import annotations

import numpy as np
import pytest

from pfl_mobile.errors import TooFewUsersError
from tests.study.small import study


def test_the_golden_batch_of_a_study_is_no_users_rows() -> None:
    with study("fedper", personal=["head"]).run(rounds=1) as result:
        shipped, trained = result.deployment().batch, result.study.batch
        given = {name: value + 0 for name, value in trained.items()}
        assert result.deployment(batch=given).batch is given
    assert {n: (v.shape, v.dtype) for n, v in shipped.items()} == {
        n: (v.shape, v.dtype) for n, v in trained.items()
    }
    assert not np.isin(shipped["x"].numpy(), trained["x"].numpy()).any()


def test_a_group_of_few_users_does_not_ship_its_values() -> None:
    with study().run(rounds=1) as result:
        result._rounds.server.groups["few"] = dict(result.values)
        result._rounds.group = lambda user: "few" if user < 4 else "many"  # type: ignore[method-assign]
        with pytest.raises(TooFewUsersError, match="'few' has 4 users"):
            result.deployment(group="few")
        assert result.deployment(group="few", min_users=4).model is not result.study.model
