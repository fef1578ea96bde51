"""One place takes the mean of updates: by a robust rule, or by a private one that lets out nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfl_mobile.errors import ConfigError, PrivacyError, TooFewUpdatesError
from pfl_mobile.merge.private import PrivateRule
from pfl_mobile.merge.robust import Median
from pfl_mobile.merge.rules import Average, create_rule, rule_entries
from pfl_mobile.merge.update_rows import FileRows, MatrixRows, RowFile, UpdateRows
from pfl_mobile.plan.upload import UpdateLayout
from pfl_mobile.privacy import Gaussian, IndependentNoise, PrivacyConfig, PrivateMean, SimulatedNoise
from pfl_mobile.strategies import Updates, create, entry, names
from pfl_mobile.strategies.strategy import mean_change
from tests.strategies.harness import Federation, state
from tests.strategies.models import Softmax, classes

pytestmark = pytest.mark.filterwarnings("ignore:EWC without fisher")

USERS = 6
LAYOUT = UpdateLayout({"a": (2, 3), "b": (4,)})
#: Name -> whether rounds may be private: what `pfl strategies --json` tells, and what merges do.
TABLE = {
    "adapter": True,
    "afl": False,
    "apfl": True,
    "bounded_group_loss": False,
    "ditto": True,
    "ewc": True,
    "fedadagrad": True,
    "fedadam": True,
    "fedavg": True,
    "fedavg_finetune": True,
    "fedavgm": True,
    "fedp3": False,
    "fedper": True,
    "fedprox": True,
    "fedrep": True,
    "fedyogi": True,
    "hierarchical": False,
    "ifca": False,
    "interpolation": True,
    "l2sp": True,
    "local": True,
    "lora": True,
    "maxfl": True,
    "moe": True,
    "multitask": False,
    "per_fedavg": True,
    "pfedhn": False,
    "pfedme": True,
    "prompt_tuning": True,
    "qffl": False,
    "reptile": True,
    "scafflix": True,
    "scaffold": True,
    "term": False,
}


def config(**changes: Any) -> PrivacyConfig:
    fixed: dict[str, Any] = {"clip_norm": 1.0, "noise_multiplier": 1e-6, "cohort": USERS, "delta": 1e-5}
    return Gaussian(**(fixed | changes))


def private_rule(given: PrivacyConfig | None = None) -> PrivateRule:
    given = given or config()
    mechanism = IndependentNoise(given.noise_multiplier, SimulatedNoise(0))
    return PrivateRule(given, PrivateMean(given, mechanism).mean)


def updates(count: int = 5, changes: np.ndarray | UpdateRows | None = None, **more: Any) -> Updates:
    rng = np.random.default_rng(3)
    drawn = rng.standard_normal((count, LAYOUT.size), np.float32)
    return Updates(
        LAYOUT,
        drawn if changes is None else changes,
        list(range(10, 10 + count)),
        np.arange(1, count + 1),
        np.full(count, 7),
        {"loss": rng.random(count)},
        ["x", "y", "x", "y", "x"][:count],
        100,
        **more,
    )


def flat(values: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([values[name].reshape(-1) for name in LAYOUT.shapes])


@pytest.fixture(params=["memory", "files"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[np.ndarray], np.ndarray | UpdateRows]:
    """The same changes in memory and in files."""

    def on_disk(matrix: np.ndarray) -> UpdateRows:
        files = []
        for i, row in enumerate(matrix):
            path = tmp_path / f"{i}"
            path.write_bytes(b"head" + row.astype("<f4").tobytes())
            files.append(RowFile(path, 4))
        return FileRows(files, matrix.shape[1])

    return on_disk if request.param == "files" else lambda matrix: matrix


# -- the mean


def test_the_mean_is_weighted(place: Callable[[np.ndarray], Any]) -> None:
    matrix = updates().changes
    found = updates(changes=place(matrix)).mean(np.arange(1.0, 6.0))
    assert {n: v.shape for n, v in found.items()} == LAYOUT.shapes
    np.testing.assert_allclose(
        flat(found), np.average(matrix, axis=0, weights=np.arange(1.0, 6.0)), rtol=1e-5
    )


def test_everything_reads_the_same_from_files(place: Callable[[np.ndarray], Any]) -> None:
    matrix = updates().changes
    found = updates(changes=place(matrix))
    np.testing.assert_array_equal(found.changes, matrix)
    np.testing.assert_array_equal(flat(found.one(3)), matrix[3])
    np.testing.assert_allclose(found.squares(["b"]), (matrix[:, 6:].astype(np.float64) ** 2).sum(1))
    np.testing.assert_allclose(flat(found.weighted_sum(np.ones(5))), matrix.sum(0), rtol=1e-5)
    some = found.select(np.array([True, False, False, True, True]))
    np.testing.assert_array_equal(some.changes, matrix[[0, 3, 4]])
    assert (some.clients, some.groups) == ([10, 13, 14], ["x", "y", "x"])
    np.testing.assert_array_equal(some.report("loss"), found.report("loss")[[0, 3, 4]])
    np.testing.assert_array_equal(found.select(np.array([4, 0])).changes, matrix[[4, 0]])
    with pytest.raises(ConfigError, match="nothing"):
        found.report("nothing")


@pytest.mark.parametrize("rule", [entry.name for entry in rule_entries()])
def test_the_rule_decides_how_the_mean_is_taken(rule: str, place: Callable[[np.ndarray], Any]) -> None:
    matrix, chosen = updates().changes, create_rule(rule)
    given = updates(changes=place(matrix), rule=chosen)
    found = flat(given.mean(np.ones(5)))
    np.testing.assert_allclose(found, chosen.mean(MatrixRows(matrix), np.ones(5)).values, rtol=1e-6)
    assert given.merged is not None
    np.testing.assert_array_equal(given.merged.values, found)


def test_groups_are_merged_by_the_rule_within_them() -> None:
    given = updates(rule=Median())
    chosen = given.select(np.array([0, 2, 4]))
    np.testing.assert_allclose(
        flat(chosen.mean(np.ones(3))), np.median(given.changes[[0, 2, 4]], axis=0), rtol=1e-6
    )


def test_a_robust_rule_is_not_gone_around_by_a_sum() -> None:
    with pytest.raises(ConfigError, match="Median"):
        updates(rule=Median()).weighted_sum(np.ones(5))


def test_a_mean_without_weights_is_nothing() -> None:
    assert mean_change(updates(), np.zeros(5), ["a"]) == {}
    with pytest.raises(TooFewUpdatesError):
        updates().mean(np.zeros(5))


# -- private


def test_a_private_mean_has_a_fixed_denominator_and_clipped_changes() -> None:
    given = updates().under(private_rule())
    clipped = updates().changes / np.maximum(1, np.linalg.norm(updates().changes, axis=1))[:, None]
    found = mean_change(given, np.ones(5), ["a", "b"])
    np.testing.assert_allclose(flat(found), clipped.sum(0) / USERS, rtol=1e-3, atol=1e-5)


def test_examples_are_weights_up_to_the_cap_under_a_private_rule() -> None:
    given = updates().under(private_rule(config(example_cap=4)))
    assert given.examples.tolist() == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert updates().under(private_rule()).examples.tolist() == [1.0] * 5


def test_the_size_of_a_round_is_public_under_a_private_rule() -> None:
    assert updates().expected == 5
    assert updates().under(private_rule()).expected == USERS


READS: dict[str, Callable[[Updates], object]] = {
    "changes": lambda u: u.changes,
    "rows": lambda u: u.rows,
    "one": lambda u: u.one(0),
    "squares": lambda u: u.squares(["a"]),
    "select": lambda u: u.select(np.array([0])),
    "report": lambda u: u.report("loss"),
    "reports": lambda u: u.reports,
    "steps": lambda u: u.steps,
    "replaced": lambda u: u.replaced(threads=1),
    "under": lambda u: u.under(Average()),
    "weighted_sum": lambda u: u.weighted_sum(np.ones(5)),
}


@pytest.mark.parametrize("read", READS)
def test_single_updates_cannot_be_read_under_a_private_rule(read: str) -> None:
    with pytest.raises(PrivacyError, match="private"):
        READS[read](updates().under(private_rule()))
    READS[read](updates())


def test_a_second_private_mean_is_refused() -> None:
    given = updates().under(private_rule())
    given.mean(np.ones(5))
    with pytest.raises(PrivacyError, match="second"):
        given.mean(np.ones(5))
    assert given.merged is None


def test_nobody_gives_noise_under_a_private_rule() -> None:
    found = mean_change(updates(0).under(private_rule(config(noise_multiplier=1.0))), np.zeros(0), ["a"])
    assert (found["a"] != 0).all()


# -- every strategy


def federation(name: str) -> Federation:
    model = Softmax(personal=entry(name).split)
    rng = np.random.default_rng(1)
    start = {t.name: (0.1 * rng.normal(size=t.shape)).astype(np.float32) for t in model.tensors}
    groups = [("a", "b")[i % 2] for i in range(USERS)]
    return Federation(create(name), model, classes(USERS), start=start, groups=groups)


def test_the_table_has_every_strategy() -> None:
    assert sorted(TABLE) == names()


@pytest.mark.parametrize("name", sorted(TABLE))
def test_what_is_told_of_a_strategy(name: str) -> None:
    shown = entry(name).to_json()
    assert shown["private"] == TABLE[name]
    assert bool(shown["why_not_private"]) is not shown["private"]


@pytest.mark.parametrize("name", sorted(TABLE))
def test_private_rounds_are_one_noisy_mean_or_refused(name: str) -> None:
    fed = federation(name)
    given = fed.collect()
    before, rule = state(fed.server), private_rule()
    if TABLE[name]:
        fed.strategy.check_private(fed.table)
        fed.strategy.merge(fed.server, given.under(rule))
        if given.layout.size:
            assert state(fed.server) != before
        return
    why = fed.strategy.why_not_private or fed.strategy.weighting.why_not_private
    with pytest.raises(PrivacyError, match=why or "no bound|norms of single changes"):
        fed.strategy.check_private(fed.table)
    with pytest.raises(PrivacyError):
        fed.strategy.merge(fed.server, given.under(rule))
    assert state(fed.server) == before


@pytest.mark.parametrize(
    "name", sorted(n for n, private in TABLE.items() if private and n not in {"local", "maxfl"})
)
def test_a_private_round_releases_what_the_bounded_sum_gives(name: str) -> None:
    """With little noise, a large clip norm and equal weights it is the round of equal weights."""
    one, other = federation(name), federation(name)
    large = config(clip_norm=1e3, noise_multiplier=1e-12)
    given = one.collect()
    one.strategy.merge(one.server, given.under(private_rule(large)))
    other.strategy.merge(other.server, given.replaced(examples=np.ones(USERS, np.int64)))
    for key, value in other.server.values.items():
        np.testing.assert_allclose(one.server.values[key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_a_merge_never_holds_all_updates(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = federation(name), federation(name)
    given = one.collect()

    class Streamed:
        """Rows that show themselves to functions for rows only."""

        def __init__(self, rows: UpdateRows) -> None:
            self.rows, self.width = rows, rows.width

        def __len__(self) -> int:
            return len(self.rows)

        def block(self, first: int, last: int, columns: slice) -> np.ndarray:
            return self.rows.block(first, last, columns).copy()

        def pick(self, chosen: Sequence[int]) -> Streamed:
            return Streamed(self.rows.pick(chosen))

    def refuse(self: Updates, *_: object) -> None:
        raise AssertionError("all updates were read at once")

    streamed = given.replaced(changes=Streamed(given.rows))
    other.strategy.merge(other.server, given)
    monkeypatch.setattr(Updates, "changes", property(refuse))
    one.strategy.merge(one.server, streamed)
    for key, value in other.server.values.items():
        np.testing.assert_allclose(one.server.values[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_a_robust_rule_merges_or_is_refused(name: str) -> None:
    fed = federation(name)
    if not fed.strategy.merges_means:
        assert name in {"fedp3", "local", "multitask", "pfedhn"}
        with pytest.raises(ConfigError, match="Median"):
            fed.strategy.check_rule(Median())
        fed.strategy.check_rule(Average())
        return
    fed.strategy.check_rule(Median())
    fed.strategy.merge(fed.server, fed.collect().under(Median()))


def test_median_resists_an_attacker_in_any_strategy_that_takes_means() -> None:
    for name in ("fedavg", "scaffold", "fedadam", "qffl"):
        fed, honest = federation(name), federation(name)
        given = fed.collect()
        poisoned = given.changes.copy()
        poisoned[2] = 1e6
        fed.strategy.merge(fed.server, given.replaced(changes=poisoned, rule=Median()))
        honest.strategy.merge(honest.server, given)
        for key, value in honest.server.values.items():
            assert np.abs(fed.server.values[key] - value).max() < 1.0
