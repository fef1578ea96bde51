"""A round of federated learning as its drivers ask for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from pfl_mobile.errors import ConfigError, NonFiniteError, PrivacyError
from pfl_mobile.federation.round import Answer, Bounds, RoundDefinition, RoundPlan, sets_read
from pfl_mobile.merge.robust import Krum, Median, NormBound
from pfl_mobile.merge.update_rows import MatrixRows
from pfl_mobile.plan.optimizers import Sgd
from pfl_mobile.privacy import PrivateRounds, SimulatedNoise, checked_privacy
from pfl_mobile.strategies import Local, Strategy, create
from pfl_mobile.strategies.state import Server

LOCAL = Local(optimizer=Sgd(lr=0.1))
CLIPPED = {"mechanism": "none", "clip_norm": 1.0, "cohort": 3}
OWN_NOISE = {"mechanism": "local", "local_noise_multiplier": 1.0, "clip_norm": 1.0, "cohort": 3}
NOISED = {"mechanism": "gaussian", "noise_multiplier": 1.0, "clip_norm": 1.0, "cohort": 3}


@dataclass(frozen=True)
class Tensor:
    name: str
    role: str
    shape: tuple[int, ...]
    update: str = "gradient"
    dtype: str = "float32"
    module: str | None = None
    group: str | None = None


TABLE = (Tensor("a", "shared", (2,)), Tensor("p", "personal", (2,)))
GROUPED = (*TABLE, Tensor("g", "group", (2,)))
VALUES = {"a": np.zeros(2, np.float32), "p": np.ones(2, np.float32), "g": np.zeros(2, np.float32)}


def defined(strategy: str | Strategy = "fedavg", table: Any = TABLE, **more: Any) -> RoundDefinition:
    made = create(strategy) if isinstance(strategy, str) else strategy
    privacy = more.pop("privacy", None)
    given = None if privacy is None else checked_privacy(privacy)
    return RoundDefinition(made, LOCAL, table, privacy=given, **({"cohort": 3} | more))


def started(definition: RoundDefinition) -> tuple[Server, RoundPlan]:
    server = definition.begin(3, {t.name: VALUES[t.name] for t in definition.table})
    return server, definition.round_plan(definition.first_plan(server, 1))


def merged(
    definition: RoundDefinition, rows: Any, examples: tuple[int, ...], factors: np.ndarray | None = None
) -> np.ndarray:
    """The tensor ``a``, which was 0, after one round; the rows are changes of it."""
    server, known = started(definition)
    answers = [
        Answer(client=i, group="", examples=n, steps=1, reports=dict.fromkeys(known.reports, 1.0))
        for i, n in enumerate(examples)
    ]
    private = None
    if definition.privacy is not None:
        private = PrivateRounds(definition.privacy, SimulatedNoise(0))
    received = definition.received(known, np.array(rows, np.float32), answers, 3)
    definition.merge(server, definition.merge_input(received, private).updates, private, factors)
    assert private is None or private.ledger.rounds == 1
    return server.values["a"]


ROWS = [[0.0, 0.0], [4.0, 0.0], [0.0, 0.5]]


def test_without_privacy_updates_are_merged_as_they_are() -> None:
    np.testing.assert_allclose(merged(defined(), ROWS, (1, 1, 2)), [1.0, 0.25])


def test_privacy_clips_without_noise_too_and_devices_count_by_their_examples() -> None:
    found = merged(defined(privacy=CLIPPED), ROWS, (1, 1, 2))
    np.testing.assert_allclose(found, [0.25, 0.25], rtol=1e-5)


def test_a_robust_rule_merges_clipped_updates_where_the_aggregator_adds_no_noise() -> None:
    for privacy in (CLIPPED, OWN_NOISE):
        found = merged(
            defined(privacy=privacy, rule=Median()), [[0.1, 0.0], [9.0, 0.0], [0.2, 0.5]], (1, 1, 1)
        )
        np.testing.assert_allclose(found, [0.2, 0.0], rtol=1e-5)


def test_under_a_robust_rule_all_devices_count_the_same_unless_there_is_a_cap() -> None:
    alike, capped = defined(rule=NormBound(bound=10.0)), CLIPPED | {"example_cap": 2}
    np.testing.assert_allclose(merged(alike, ROWS, (1, 1, 1000)), [4 / 3, 0.5 / 3], rtol=1e-5)
    found = merged(defined(rule=NormBound(bound=10.0), privacy=capped), ROWS, (1, 1, 1000))
    np.testing.assert_allclose(found, [1 / 4, 1 / 4], rtol=1e-5)


def test_bounds_hold_what_a_device_says_of_itself() -> None:
    bounded = defined(bounds=Bounds(examples=2, part=3.0))
    np.testing.assert_allclose(merged(bounded, ROWS, (1, 1, 1000)), [1.0, 0.25], rtol=1e-5)
    # 8 of 10 parts become the half that no device has more of
    bounded = defined(bounds=Bounds(examples=1000, part=3.0))
    np.testing.assert_allclose(merged(bounded, ROWS, (1, 1, 8)), [1.0, 0.25], rtol=1e-5)
    np.testing.assert_allclose(merged(defined(), ROWS, (1, 1, 8)), [0.4, 0.4], rtol=1e-5)


def test_what_is_late_counts_less() -> None:
    found = merged(defined(), ROWS, (1, 1, 1), np.array([1.0, 0.5, 0.5]))
    np.testing.assert_allclose(found, [1.0, 0.125], rtol=1e-5)


def test_a_merge_that_fails_changes_nothing() -> None:
    definition = defined()
    server, known = started(definition)
    answers = [Answer(client=i, group="", examples=1, steps=1, reports={}) for i in range(2)]
    rows = MatrixRows(np.full((2, 2), np.nan, np.float32))
    with pytest.raises(NonFiniteError):
        definition.merge(server, definition.received(known, rows, answers, 3), None)
    assert server.values["a"].tolist() == [0.0, 0.0]


def test_nothing_is_merged_without_the_noise_and_the_ledger_that_the_privacy_says() -> None:
    definition = defined(privacy=NOISED)
    server, known = started(definition)
    answers = [Answer(client=0, group="", examples=1, steps=1, reports={})]
    received = definition.received(known, np.ones((1, 2), np.float32), answers, 3)
    assert definition.privacy is not None
    private = PrivateRounds(definition.privacy, SimulatedNoise(0))
    with pytest.raises(PrivacyError, match="without its noise"):
        definition.merge_input(received, None)
    with pytest.raises(PrivacyError, match="without the noise"):
        definition.merge(server, received, private)
    assert server.values["a"].tolist() == [0.0, 0.0]
    assert private.ledger.rounds == 0


def test_of_the_global_values_only_those_that_are_merged_are_sent() -> None:
    definition = defined()
    server, known = started(definition)
    common = definition.common_sets(server, sets_read([known.plan]))
    assert {name: sorted(definition.on_wire(name, values)) for name, values in common.items()} == {
        "global": ["a"]
    }
    assert not definition.has_own_sets
    assert defined(table=GROUPED, groups=True).has_own_sets


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: defined(rule=Median(), privacy=NOISED), PrivacyError, "Median .* no bounded sum"),
        (lambda: defined("term", privacy=NOISED), PrivacyError, "Tilted"),
        (lambda: defined("multitask", rule=Median()), ConfigError, "MultiTask"),
        (lambda: defined("bounded_group_loss"), ConfigError, "BoundedGroupLoss weights groups"),
        (lambda: defined(table=GROUPED), ConfigError, "tensors of groups"),
        (lambda: defined(privacy=NOISED | {"cohort": 4}), ConfigError, "a cohort of 4, .* a cohort of 3"),
        (lambda: defined(rule=Krum()), ConfigError, "a full round of 3 updates is too small"),
        (lambda: defined("term", privacy=OWN_NOISE).plan(0, 0), PrivacyError, "would report sent_loss"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(make: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make()


def test_cohorts_of_another_size_matter_only_to_noise() -> None:
    assert not defined(privacy=CLIPPED | {"cohort": 4}).central
    assert defined(privacy=NOISED).central
