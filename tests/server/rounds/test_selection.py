"""Who a round may have: draws, and those they are drawn from."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import update

from pfl_mobile.errors import ConfigError
from pfl_server.rounds.selection import Draw
from pfl_server.storage.models import EnrolledDevice
from tests.server.basics import ADMIN_TOKEN
from tests.server.testbed import FIXED, GAUSSIAN, POISSON, federation_config, small

ADMIN = {"Authorization": f"Bearer {ADMIN_TOKEN}"}


@given(st.floats(0, 1), st.integers(0, 50))
def test_a_draw_survives_being_written(rate, index):
    draw = Draw.poisson(rate)
    assert Draw.parse(draw.text()) == draw
    assert len(draw.text()) <= 100
    assert draw.chosen("ab" * 16, index) == Draw.parse(draw.text()).chosen("ab" * 16, index)


def test_coins_fall_with_their_probability():
    draws = [Draw.poisson(0.3) for _ in range(20)]
    found = sum(draw.chosen(f"{i:032x}", i) for draw in draws for i in range(1000))
    assert abs(found / 20_000 - 0.3) < 6 * (0.3 * 0.7 / 20_000) ** 0.5
    assert all(Draw.poisson(1.0).chosen(f"{i:032x}", i) for i in range(100))
    assert not any(Draw.poisson(0.0).chosen(f"{i:032x}", i) for i in range(100))


@given(st.integers(0, 30), st.integers(0, 40))
def test_a_fixed_draw_has_just_so_many_devices(count, size):
    devices = [(f"{i:032x}", i) for i in range(size)]
    draw = Draw.fixed(devices, count, size)
    assert sum(draw.chosen(*device) for device in devices) == min(count, size)
    assert not draw.chosen("f" * 32, size)  # enrolled later


def test_all_subsets_are_drawn_alike():
    devices = [(f"{i:032x}", i) for i in range(4)]
    subsets = Counter(
        tuple(index for device, index in devices if draw.chosen(device, index))
        for draw in (Draw.fixed(devices, 2, 4) for _ in range(3000))
    )
    assert len(subsets) == 6
    assert all(abs(count - 500) < 6 * 500**0.5 for count in subsets.values())


def test_a_poisson_round_takes_who_is_drawn_and_ends_at_its_deadline(tmp_path):
    privacy = POISSON | {"population": 20, "cohort": 10, "delta": 1e-3}
    rounds = {"cohort": 10, "minimum": 1, "total": 10}
    with small(tmp_path, federation_config(rounds=rounds, privacy=privacy), devices=20) as f:
        f.step()
        draw = Draw.parse(f.round().selection)
        with f.services.database.read() as session:
            drawn = {d.index for d in session.query(EnrolledDevice) if draw.chosen(d.id, d.index)}
        for index, device in enumerate(f.devices):
            if index in drawn:
                f.send(device)
            else:
                assert f.check_in(device)["reason"] == "not_selected"
        for _ in range(4):  # also once all who were drawn have answered
            f.step()
            assert f.round(0).state == "open"
            f.clock.pass_time(24)
        f.clock.pass_time(5)
        f.step()
        assert f.round(0).state == ("merged" if drawn else "abandoned")


def test_a_fixed_round_waits_until_the_population_is_there(tmp_path):
    privacy = FIXED | {"population": 6, "cohort": 3}
    with small(tmp_path, federation_config(privacy=privacy), devices=5) as f:
        f.step()
        assert f.check_in(f.devices[0])["reason"] == "between_rounds"
        f.enrol(1)
        f.step()
        answers = Counter(f.check_in(device)["status"] for device in f.devices)
        assert answers == {"task": 3, "wait": 3}
        f.enrol(1)  # who comes later was not drawn, as the draw is over
        assert f.check_in(f.devices[-1])["reason"] == "not_selected"


@pytest.mark.parametrize("sampling", ["poisson", "fixed"])
def test_devices_that_nobody_vouches_for_are_neither_counted_nor_drawn(tmp_path, sampling):
    privacy = GAUSSIAN | {"participation": {"sampling": sampling}, "population": 4, "cohort": 4}
    config = federation_config(rounds={"cohort": 4, "minimum": 1, "total": 5}, privacy=privacy)
    config = config.model_copy(update={"open_sampling": False})
    with small(tmp_path, config, settings={"enrolment": "token"}) as f:
        token = f.client.post("/v1/admin/tokens", json={}, headers=ADMIN).json()["token"]
        f.enrol(3, token=token)
        with f.services.database.write() as session:  # as from the time when enrolment was open
            session.execute(update(EnrolledDevice).values(vouched=EnrolledDevice.index > 0))
        f.step()
        assert f.check_in(f.devices[0])["status"] == "wait"
        if sampling == "fixed":
            assert (
                f.check_in(f.devices[1])["reason"] == "between_rounds"
            )  # three are too few for the population
            f.enrol(2, token=token)
            f.step()
        assert f.check_in(f.devices[0])["reason"] == "not_selected"
        assert {f.check_in(device)["status"] for device in f.devices[1:]} == {"task"}


@pytest.mark.parametrize("sampling", ["poisson", "fixed"])
def test_a_guarantee_by_sampling_goes_with_no_open_enrolment_unless_that_is_said(tmp_path, sampling):
    privacy = GAUSSIAN | {"participation": {"sampling": sampling}, "population": 4, "cohort": 4}
    config = federation_config(rounds={"cohort": 4, "minimum": 1, "total": 5}, privacy=privacy)
    strict = config.model_copy(update={"open_sampling": False})
    with pytest.raises(ConfigError, match="enrolment is open"), small(tmp_path, strict):
        pass
    with small(tmp_path, config) as f:  # nothing was decided by the start that failed
        said = f.version().privacy
    assert any("open_sampling" in sentence for sentence in said["assumptions"])
    assert said["epsilon_known_round"] > 0
    assert (said["sampling"], said["sampling_rate"]) == (sampling, 1.0)
