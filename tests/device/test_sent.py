"""What a device has sent under its own noise is counted by itself, and the count outlives everything."""

from __future__ import annotations

import json

import pytest

from pfl_mobile.device.sent import SentNoise
from pfl_mobile.errors import DeviceFolderError
from pfl_mobile.privacy.local import local_epsilon


def test_nothing_sent_costs_nothing(tmp_path):
    sent = SentNoise(tmp_path / "sent.json")
    assert (sent.updates, sent.epsilon(1e-5)) == (0, 0.0)
    assert not (tmp_path / "sent.json").exists()


def test_updates_add_up_over_restarts(tmp_path):
    path = tmp_path / "sent.json"
    SentNoise(path).add(2.0)
    SentNoise(path).add(4.0)
    sent = SentNoise(path)
    assert sent.updates == 2
    assert (
        sent.epsilon(1e-5) == local_epsilon(1 / 4 + 1 / 16, 1e-5) > SentNoise(tmp_path / "none").epsilon(1e-5)
    )


def test_the_price_of_more_is_asked_without_counting_it(tmp_path):
    sent = SentNoise(tmp_path / "sent.json")
    sent.add(2.0)
    assert sent.epsilon(1e-5, 4.0) == local_epsilon(1 / 4 + 1 / 16, 1e-5)
    assert sent.epsilon(1e-5) == local_epsilon(1 / 4, 1e-5)
    assert SentNoise(tmp_path / "sent.json").updates == 1


def test_noise_that_hides_nothing_still_gives_a_file(tmp_path):
    path = tmp_path / "sent.json"
    SentNoise(path).add(1e-200)
    assert SentNoise(path).epsilon(1e-5) > 1e6


@pytest.mark.parametrize(
    "change",
    [
        {"updates": -1},
        {"updates": 0},
        {"updates": 1.5},
        {"inverse_squares": 0.0},
        {"inverse_squares": "x"},
        {"schema_version": 2},
        {"inverse_squares": None},
    ],
)
def test_a_damaged_count_is_refused_as_nobody_knows_what_was_sent(tmp_path, change):
    path = tmp_path / "sent.json"
    SentNoise(path).add(2.0)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DeviceFolderError):
        SentNoise(path)


def test_a_cut_file_is_refused(tmp_path):
    path = tmp_path / "sent.json"
    path.write_text('{"schema_version": 1, ')
    with pytest.raises(DeviceFolderError, match="not known how much"):
        SentNoise(path)
