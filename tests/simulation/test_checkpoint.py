"""A run on disk: damage is seen, and other settings are refused."""

from __future__ import annotations

import numpy as np
import pytest

from pfl_mobile.errors import CheckpointError, OtherSettingsError
from pfl_mobile.strategies import create
from tests.simulation.resuming import arrays, given, run
from tests.simulation.small import rounds, same


def test_other_groups_and_another_name_are_refused(tmp_path):
    one = {"a": [0, 1], "b": [2, 3, 4]}
    run(arrays(groups=one), tmp_path, 1)
    for other in ({"a": [0, 2], "b": [1, 3, 4]}, {"a": [0, 1], "c": [2, 3, 4]}, {}):
        with pytest.raises(OtherSettingsError, match=r"groups\."):
            run(arrays(groups=other), tmp_path, 2, resume=True)
    with pytest.raises(OtherSettingsError, match=r"data\.name"):
        run(arrays(name="others", groups=one), tmp_path, 2, resume=True)


def test_another_choice_of_cohorts_is_refused(tmp_path):
    run(arrays(), tmp_path, 1, choose=lambda number: [number, 4])
    with pytest.raises(OtherSettingsError, match="the code of choose"):
        run(arrays(), tmp_path, 2, resume=True, choose=lambda number: [number, 3])


def test_a_flipped_bit_in_a_state_is_refused(tmp_path):
    strategy = create("ditto")
    full = run(arrays(), None, 6, strategy=strategy)
    run(arrays(), tmp_path, 3, strategy=strategy)
    data = bytearray((tmp_path / "states").read_bytes())
    with rounds(strategy, given(arrays()), folder=tmp_path, cohort_size=4, resume=True) as one:
        place = one.states.mapping()[1][0] * one.states.form.stride * 4
    spoiled = bytearray(data)
    spoiled[place + 1] ^= 4
    (tmp_path / "states").write_bytes(bytes(spoiled))
    with pytest.raises(CheckpointError, match="does not match its digest"):
        run(arrays(), tmp_path, 6, resume=True, strategy=strategy)
    (tmp_path / "states").write_bytes(bytes(data))
    assert same(run(arrays(), tmp_path, 6, resume=True, strategy=strategy), full)


def test_a_digit_changed_in_the_history_is_refused(tmp_path):
    run(arrays(), tmp_path, 2)
    path = tmp_path / "history.jsonl"
    path.write_text(path.read_text().replace('"clients": 4', '"clients": 3', 1))
    with pytest.raises(CheckpointError, match="does not match its digest"):
        run(arrays(), tmp_path, 3, resume=True)


def test_a_checkpoint_without_notes_of_its_data_is_refused(tmp_path):
    from pfl_mobile.files.sealed import seal

    run(arrays(), tmp_path, 1)
    old = seal({"states.devices": np.zeros(0, np.int64)}, '{"schema_version": 1}', form="pfl-rounds")
    (tmp_path / "checkpoint").write_bytes(old)
    with pytest.raises(CheckpointError, match="older version, which did not note the data") as caught:
        run(arrays(), tmp_path, 2, resume=True)
    assert "empty folder" in caught.value.mend
