"""What a device does to its update, and what it asks of a task, without believing the aggregator."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfl_mobile.device.privacy import PrivacyPolicy, protect
from pfl_mobile.device.sent import SentNoise
from pfl_mobile.errors import ConfigError, DeviceFolderError, ServerProblem, UnreachableError
from pfl_mobile.privacy import (
    AdaptiveClipping,
    Fixed,
    Gaussian,
    Ledger,
    Matrix,
    Poisson,
    Unsampled,
    l2_norm,
    private_update,
)
from pfl_mobile.privacy.accounting import gaussian_epsilon
from pfl_mobile.privacy.local import local_epsilon, release_epsilon, sampled_epsilon
from pfl_mobile.protocol.bodies import TaskPrivacy
from tests.device.conftest import device
from tests.device.fake_server import problem


class Ones:
    """Noise that is 1 everywhere, so that its scale can be read."""

    secure = False

    def begin(self, round):  # noqa: A002
        pass

    def normal(self, size):
        return np.ones(size)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e19, 1e38])
@pytest.mark.parametrize("clip_norm", [1e-9, 0.5, 1e3])
def test_an_update_of_any_size_is_clipped_as_everywhere(size, clip_norm):
    flat = np.array([1.0, -2.0, 0.5, 0.0, 3.0], np.float32) * np.float32(size)
    privacy = TaskPrivacy(mechanism="gaussian", clip_norm=clip_norm, noise_multiplier=1.0)
    found = protect(flat, privacy)
    np.testing.assert_array_equal(found.flat, private_update(flat, clip_norm, 0.0, Ones()))
    assert found.flat.dtype == np.float32
    assert found.clipped == (found.norm > clip_norm)
    sent = l2_norm(found.flat)
    assert sent <= clip_norm
    assert sent == pytest.approx(min(found.norm, clip_norm), rel=1e-5)  # the direction's length is not lost


def test_local_noise_is_added_after_clipping_and_relative_to_the_bound():
    privacy = TaskPrivacy(mechanism="local", clip_norm=0.5, noise_multiplier=0.0, local_noise_multiplier=4.0)
    found = protect(np.array([3.0, 4.0], np.float32), privacy, Ones())
    np.testing.assert_allclose(found.flat, [2.3, 2.4], rtol=1e-5)
    assert found.norm == 5.0
    assert found.clipped


# -- what local noise guarantees, by the device's own reckoning


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.floats(0.05, 1e4), min_size=1, max_size=5),
    st.sampled_from([1e-3, 1e-6, 1e-9]),
)
def test_epsilon_without_any_package_is_that_of_the_ledger(multipliers, delta):
    found = local_epsilon(sum(z**-2 for z in multipliers), delta)
    assert found == pytest.approx(
        gaussian_epsilon([(z / 2, 1) for z in multipliers], delta), rel=1e-4, abs=1e-7
    )


def test_no_noise_is_no_guarantee():
    assert local_epsilon(0.0, 1e-6) == 0.0
    assert local_epsilon(1e18, 1e-6) > 1e18
    assert local_epsilon(float("inf"), 1e-6) == float("inf")


LOCAL = {
    "mechanism": "local",
    "noise_multiplier": 0.0,
    "local_noise_multiplier": 20.0,
    "statement": {"epsilon": 0.1, "delta": 1e-6},
}
ONE = local_epsilon(20.0**-2, 1e-6)


def why_of(found):
    return [event.why for event in found.events if type(event).__name__ == "Declined"]


@pytest.mark.parametrize("z", [1e-9, 1e-200, 1.0])
def test_a_statement_about_local_noise_is_not_believed(fake, address, tmp_path, z, monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)  # a phone has none
    fake.privacy |= LOCAL | {"local_noise_multiplier": z}
    with device(tmp_path, address, policy=PrivacyPolicy(max_epsilon=2.0)) as found:
        assert found.run().ended == "privacy"
    assert "accepted here is 2" in why_of(found)[0]
    assert fake.accepted == []
    assert found.folder.sent.updates == 0


def test_a_larger_delta_does_not_buy_less_noise(fake, address, tmp_path):
    fake.privacy |= LOCAL | {"statement": {"epsilon": 0.1, "delta": 0.5}}
    with device(tmp_path, address, policy=PrivacyPolicy(max_epsilon=0.99 * ONE)) as found:
        assert found.run().ended == "privacy"
    assert fake.accepted == []


def test_updates_add_up_over_restarts_until_no_more_is_sent(fake, address, tmp_path):
    fake.rounds, fake.privacy = 9, fake.privacy | LOCAL
    policy = PrivacyPolicy(max_epsilon=local_epsilon(3.5 * 20.0**-2, 1e-6))
    for ended in ("once", "once", "once", "privacy", "privacy"):
        with device(tmp_path, address, policy=policy) as found:
            assert found.run(once=True).ended == ended
    assert len(fake.accepted) == 3
    assert SentNoise(tmp_path / "sent.json").updates == 3


def unsent(fake, address, folder, **settings):
    """A device that made an update and cannot send it."""
    fake.update = lambda method, task, headers, body: (b"".join(body), problem(503, "unavailable"))[1]
    with (
        device(folder, address, patience_s=0.0, **settings) as found,
        pytest.raises((ServerProblem, UnreachableError)),
    ):
        found.run()
    del fake.update


def test_an_update_counts_before_its_upload_and_once(fake, address, tmp_path):
    fake.privacy |= LOCAL
    unsent(fake, address, tmp_path)
    assert SentNoise(tmp_path / "sent.json").updates == 1
    with device(tmp_path, address, policy=PrivacyPolicy(max_epsilon=1.01 * ONE)) as found:
        assert found.run().rounds == 1  # the same bytes again
    assert found.folder.sent.updates == 1


@pytest.mark.parametrize("kind", ["update", "json"])
def test_a_task_trained_again_after_damage_in_the_queue_counts_again(fake, address, tmp_path, kind):
    fake.privacy |= LOCAL
    unsent(fake, address, tmp_path)
    next((tmp_path / "queue").glob(f"*.{kind}")).write_bytes(b"{")
    with device(tmp_path, address, policy=PrivacyPolicy(max_epsilon=1.01 * ONE)) as found:
        assert found.run().ended == "privacy"
    assert fake.accepted == []
    fake.round = 0
    next(iter(fake.tasks.values()))["declined"] = None
    with device(tmp_path, address) as found:
        assert found.run().rounds == 1
    assert found.folder.sent.updates == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"schema_version": 2, "updates": 1, "inverse_squares": 1}',
        '{"schema_version": 1, "updates": -1, "inverse_squares": 0}',
        '{"schema_version": 1, "updates": 3, "inverse_squares": 0}',
        '{"schema_version": 1, "updates": 3, "inverse_squares": NaN}',
    ],
)
def test_a_damaged_count_is_not_taken_for_nothing(address, tmp_path, text):
    (tmp_path / "sent.json").write_text(text)
    with pytest.raises(DeviceFolderError, match=r"sent\.json"), device(tmp_path, address):
        pass
    (tmp_path / "sent.json").unlink()
    with device(tmp_path, address):  # the lock was given back
        pass


@pytest.mark.parametrize(("after", "why"), [(2.1, "2.1"), (None, "names no epsilon"), (1.9, None)])
def test_epsilon_after_the_round_decides_and_not_that_before(fake, address, tmp_path, after, why):
    told = {"private": True, "epsilon": 1.8, "delta": 1e-6, "noise_multiplier": 4.0, "sampling": "none"}
    fake.privacy |= {"noise_multiplier": 4.0, "statement": told, "epsilon_after": after}
    with device(tmp_path, address, policy=PrivacyPolicy(max_epsilon=2.0)) as found:
        assert found.run().rounds == (why is None)
    assert [why in told for told in why_of(found)] == ([True] if why else [])


# -- an aggregator that is not trusted with its own noise either

OWN = PrivacyPolicy(only_local=True, min_noise=15.0, max_epsilon=1.01 * ONE)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, "no noise of its own (mechanism 'gaussian')"),
        ({"mechanism": "matrix", "noise_multiplier": 1e9}, "no noise of its own (mechanism 'matrix')"),
        (LOCAL | {"local_noise_multiplier": 0.0, "noise_multiplier": 9.0}, "no noise of its own"),
        (LOCAL | {"local_noise_multiplier": -20.0}, "no noise of its own"),
        (LOCAL | {"local_noise_multiplier": 14.9}, "the least that is accepted here is 15"),
        (LOCAL | {"local_noise_multiplier": 19.0}, "epsilon is"),
        (LOCAL | {"clip_norm": None}, "not clipped"),
        (
            {"local_noise_multiplier": 19.0, "epsilon_after": 1e-3},
            "epsilon is",
        ),  # the told epsilon is no help
    ],
)
def test_only_enough_noise_of_its_own_lets_an_update_leave(fake, address, tmp_path, change, why):
    fake.privacy |= change
    with device(tmp_path, address, policy=OWN) as found:
        assert found.run().ended == "privacy"
    assert why in why_of(found)[0]
    assert not any(method == "PUT" or path.endswith("/evaluation") for method, path in fake.requests)
    assert list((tmp_path / "queue").iterdir()) == []
    assert found.folder.sent.updates == 0


@pytest.mark.parametrize("mechanism", ["local", "gaussian"])
def test_an_update_under_enough_noise_of_its_own_leaves_alone(fake, address, tmp_path, mechanism):
    fake.privacy |= LOCAL | {"mechanism": mechanism, "noise_multiplier": 1.0}
    with device(tmp_path, address, policy=OWN, noise=Ones()) as found:
        assert found.run().rounds == 1
    _, tensors = fake.update_of(fake.accepted[0])
    np.testing.assert_allclose(
        tensors["head.weight"], 20.0 * 0.05, atol=0.05
    )  # of norm 0.05 beside the noise
    assert fake.accepted[0]["evaluations"] == []
    assert found.folder.sent.updates == 1


def test_numbers_beside_the_update_are_refused_where_only_local_noise_is_trusted(fake, address, tmp_path):
    fake.privacy |= {"local_noise_multiplier": 20.0}
    fake.reports = ("loss",)
    with device(tmp_path, address, policy=OWN) as found:
        assert found.run().ended == "privacy"
    assert "loss" in why_of(found)[0]


def test_a_smaller_delta_asks_for_more_noise(fake, address, tmp_path):
    fake.privacy |= LOCAL
    policy = PrivacyPolicy(only_local=True, max_epsilon=1.01 * ONE, max_delta=1e-9)
    with device(tmp_path, address, policy=policy) as found:
        assert found.run().ended == "privacy"
    assert fake.accepted == []


@pytest.mark.parametrize(
    ("before", "policy", "why"),
    [
        ({}, OWN, "no noise of its own"),
        ({"mechanism": "none"}, PrivacyPolicy(), "mechanism 'none'"),
        (LOCAL, PrivacyPolicy(max_epsilon=0.99 * ONE), "epsilon is"),
    ],
)
def test_an_update_that_waits_is_held_against_a_stricter_policy(fake, address, tmp_path, before, policy, why):
    fake.privacy |= before
    unsent(fake, address, tmp_path, policy=PrivacyPolicy(require=False))
    sent = len(fake.requests)
    with device(tmp_path, address, policy=policy) as found:
        assert found.run(once=True).ended == "privacy"
    assert why in next(e for e in found.events if type(e).__name__ == "Dropped").why
    assert not any(method in ("PUT", "HEAD") for method, _ in fake.requests[sent:])
    assert fake.accepted == []
    assert list((tmp_path / "queue").iterdir()) == []


def test_an_evaluation_that_waits_is_held_against_a_stricter_policy(fake, address, tmp_path):
    real = fake.json
    fake.json = lambda m, path, h, s: (
        problem(503, "unavailable") if path.endswith("/evaluation") else real(m, path, h, s)
    )
    with device(tmp_path, address, patience_s=0.0) as found, pytest.raises(ServerProblem):
        found.run()
    del fake.json
    with device(tmp_path, address, policy=OWN) as found:
        found.run()
    assert [t["evaluations"] for t in fake.accepted] == [[]]
    assert list((tmp_path / "queue").iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"only_local": True, "require": False, "min_noise": 1.0}, "without any"),
        ({"min_noise": 1.0}, "is not asked for"),
        ({"only_local": True, "min_noise": float("nan")}, "smallest noise"),
        ({"max_epsilon": float("nan")}, "largest epsilon"),
        ({"only_local": True, "max_epsilon": float("inf")}, "largest epsilon"),
        ({"max_epsilon": 20.1}, "largest epsilon"),
        ({"max_epsilon": 1e9}, "largest epsilon"),
        ({"max_delta": 0.0}, "largest delta"),
        ({"max_delta": 1.0}, "largest delta"),
        ({"max_delta": 0.01}, "largest delta"),
        ({"max_delta": 1e-320}, "largest delta"),
    ],
)
def test_a_policy_that_would_protect_less_than_it_seems_is_refused(settings, why):
    with pytest.raises(ConfigError, match=why):
        PrivacyPolicy(**settings)


# -- what nobody would call private

TOLD = {
    "private": True,
    "epsilon": 1.0,
    "delta": 1e-6,
    "noise_multiplier": 1.0,
    "sampling": "poisson",
    "sampling_rate": 1e-3,
}


def central(statement=None, **changes):
    """A task that the aggregator's noise protects; of ``statement`` None removes a field."""
    told = {k: v for k, v in (TOLD | (statement or {})).items() if v is not None}
    fields = {"mechanism": "gaussian", "clip_norm": 1.0, "noise_multiplier": 1.0, "epsilon_after": 2.0}
    return TaskPrivacy.model_construct(
        **fields | {"local_noise_multiplier": 0.0, "statement": told} | changes
    )


@pytest.mark.parametrize(
    ("privacy", "why"),
    [
        (central(), None),
        (central({"sampling": None, "sampling_rate": None}), None),  # an older aggregator
        (central({"noise_multiplier": None}), None),
        (central({"sampling": "none", "noise_multiplier": 5.0}, noise_multiplier=5.0), None),
        (central(epsilon_after=None), "names no epsilon"),
        (central(epsilon_after=math.nan), "names no epsilon"),
        (central(epsilon_after=math.inf), "epsilon is inf"),
        (central(epsilon_after=5e17), "epsilon is 5e"),
        (central(epsilon_after=10.1), "epsilon is 10.1"),
        (central(epsilon_after=-1.0), "before the round"),
        (central({"delta": 0.99}), "delta is 0.99"),
        (central({"delta": 1e-3}), "delta is 0.001"),
        (central({"delta": 0}), "names no delta"),
        (central({"delta": math.nan}), "names no delta"),
        (central({"delta": "1e-6"}), "names no delta"),
        (central({"delta": True}), "names no delta"),
        (central({"delta": None}), "names no delta"),
        (central({"private": None}), "anything is private"),
        (central({"private": "yes"}), "anything is private"),
        (central({"private": 1}), "anything is private"),
        (central({"private": False}), "anything is private"),
        (central(noise_multiplier=1e-9, statement={"noise_multiplier": 1e-9}), "too small"),
        (central(noise_multiplier=1e-320, statement={"noise_multiplier": 1e-320}), "too small"),
        (central(noise_multiplier=0.2, statement={"noise_multiplier": 0.2}), "too small"),
        (central(noise_multiplier=math.inf), "is none"),
        (central(noise_multiplier=math.nan), "is none"),
        (central(noise_multiplier=0.5), "noise multiplier of 1.0"),
        (central({"noise_multiplier": "1"}), "noise multiplier of '1'"),
        (central({"epsilon": 3.0}), "before the round"),
        (central({"epsilon": None}), "before the round"),
        (central({"epsilon": "0"}), "before the round"),
        (central({"sampling": "none"}), "one round"),
        (central({"sampling_rate": 0.9}), "one round"),
        (central({"sampling": "fixed", "sampling_rate": 0.9}), "one round"),
        (central({"sampling_rate": None}), "sampling rate"),
        (central({"sampling_rate": 0.0}), "sampling rate"),
        (central({"sampling_rate": 7}), "sampling rate"),
        (central({"sampling": "magic"}), "not known"),
        (central(clip_norm=0.0), "not clipped"),
        (central(clip_norm=math.inf), "not clipped"),
        (central(clip_norm=math.nan), "not clipped"),
        (central(clip_norm=1e300), "not clipped"),
        (central(clip_norm=1e-320), "not clipped"),
        (central(mechanism="local", local_noise_multiplier=1e-9, noise_multiplier=0.0), "epsilon is"),
        (central(mechanism="local", local_noise_multiplier=1e-320, noise_multiplier=0.0), "epsilon is"),
        (central(mechanism="local", local_noise_multiplier=math.inf, noise_multiplier=0.0), "is none"),
        (central({}, mechanism="local", local_noise_multiplier=2.0, noise_multiplier=0.0), None),
        (
            central({"delta": 0.5}, mechanism="local", local_noise_multiplier=0.5, noise_multiplier=0.0),
            "epsilon is",
        ),
    ],
)
def test_a_device_with_the_default_policy_sends_nothing_that_nobody_would_call_private(
    tmp_path, privacy, why
):
    found = PrivacyPolicy().refusal(privacy, (), SentNoise(tmp_path / "sent.json"))
    assert found is None if why is None else why in (found or "nothing")


def test_what_the_aggregator_states_fits_what_devices_compute():
    """For each mechanism and sampling, after the first rounds."""
    base = {"clip_norm": 1.0, "cohort": 100, "rounds": 50, "delta": 1e-6, "population": 10_000}
    for config in (
        Gaussian(**base, noise_multiplier=1.0, participation=Poisson()),
        Gaussian(**base, noise_multiplier=3.0, participation=Fixed()),
        Gaussian(**base, noise_multiplier=4.0),
        Matrix(**base, noise_multiplier=4.0, participation=Unsampled(min_separation=5)),
        Gaussian(**base, noise_multiplier=4.0, adaptive=AdaptiveClipping(noise_multiplier=3.0)),
    ):
        ledger = Ledger(config)
        for _ in range(3):
            told = central(
                mechanism=ledger.config.mechanism,
                noise_multiplier=ledger.config.noise_multiplier,
                epsilon_after=ledger.epsilon_after(),
            ).model_copy(update={"statement": json.loads(json.dumps(ledger.statement()))})
            assert PrivacyPolicy().refusal(told, (), None) is None, config
            less = told.model_copy(update={"epsilon_after": ledger.statement()["epsilon"] / 2 or 1e-3})
            assert PrivacyPolicy().refusal(less, (), None) is not None, config
            ledger.record()


def test_sampling_costs_less_than_no_sampling_and_at_most_what_the_accountant_says():
    for noise, rate in ((0.5, 0.01), (1.0, 0.5), (2.0, 1e-3), (0.35, 1.0)):
        found = sampled_epsilon(1 / noise, rate, 1e-6)
        config = Gaussian(
            clip_norm=1.0,
            noise_multiplier=noise,
            cohort=round(rate * 10**5),
            population=10**5,
            rounds=1,
            delta=1e-6,
            participation=Poisson(),
        )
        ledger = Ledger(config)
        ledger.record()
        assert found <= ledger.epsilon() * 1.001
        assert found >= 0.9 * ledger.epsilon() or found < 0.1
        assert found <= release_epsilon(1 / noise, 1e-6) * (1 + 1e-9)
