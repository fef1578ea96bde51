"""Users whose rows cannot be used: each is skipped, counted and named, and ends no run."""

from __future__ import annotations

import pytest

from pfl_mobile.errors import CohortFailedError
from pfl_mobile.simulation.backend import LocalBackend
from pfl_mobile.strategies import create
from tests.simulation.small import rounds, same, setup

FEDAVG = create("fedavg")

#: What can be wrong with a user, and the error that it is told as.
KINDS = {
    "empty": "NoExamplesError",
    "weightless": "NoExamplesError",
    "nan": "DataError",
    "huge": "NonFiniteError",
    "wide": "DataError",
    "double": "DataError",
    "class": "DataError",
    "negative": "DataError",
    "unlabelled": "DataError",
    "typed": "DataError",
    "list": "UnusableRowsError",
    "error": "UnusableRowsError",
}


#: One kind for each error: between processes an error is carried the same way whatever it was made of.
CARRIED = {error: kind for kind, error in KINDS.items()}
#: All kinds in this process, one for each error in another and in several.
each_kind = pytest.mark.parametrize(
    ("backend", "kind"),
    [(0, kind) for kind in KINDS] + [(n, kind) for n in (1, 2) for kind in CARRIED.values()],
    indirect=["backend"],
)


@pytest.fixture(scope="module", params=[0, 1, 2], ids=lambda n: f"{n} processes")
def backend(request):
    with LocalBackend(request.param) as found:
        yield found


@each_kind
def test_a_cohort_of_bad_users_alone_is_recorded_and_the_run_goes_on(backend, kind):
    def cohort(number):
        return [1, 2] if number == 1 else [0, 3, 5]

    with rounds(FEDAVG, setup(trouble={1: kind, 2: kind}), backend, choose=cohort) as study:
        study.run()
        assert [r.clients for r in study.history] == [3, 0, 3]
        assert study.history[1].failures == {KINDS[kind]: 2}
        assert study.history[1].loss is None
        values = study.server.values
    with rounds(FEDAVG, setup(), backend, choose=cohort, dropout=0.0) as study:
        study.step()
        study.server.round = 2
        study.step()
        assert same(study.server.values, values)


@each_kind
def test_every_bad_user_is_named_with_the_rounds_it_failed_in(backend, kind):
    with rounds(create("scaffold"), setup(trouble={7: kind}), backend, cohort_size=20) as study:
        study.run()
        found = study.troubled()
        assert found.keys() == {7}
        assert (found[7].rounds, found[7].failed) == (3, 3)
        assert found[7].why.startswith(f"{KINDS[kind]}: ")
        measured = {m.client: m for m in study.evaluate()}
        assert measured[7].failure.startswith(f"{KINDS[kind]}: ")
        assert {m.failure for client, m in measured.items() if client != 7} == {None}


def test_a_user_that_fails_in_some_rounds_is_told_from_one_that_always_does(backend):
    given = setup(trouble={4: "error"})
    with rounds(FEDAVG, given, backend, cohort_size=20) as study:
        study.step()
        given.population.trouble = {}
        backend.close()
        study.run()
        assert (study.troubled()[4].rounds, study.troubled()[4].failed) == (3, 1)


def test_rows_that_lie_backwards_in_memory_are_good_rows(backend):
    with rounds(FEDAVG, setup(trouble={4: "flipped"}), backend, cohort_size=20) as study:
        values = study.run().values
        assert not study.troubled()
    with rounds(FEDAVG, setup(), backend, cohort_size=20) as study:
        assert same(study.run().values, values)


def test_a_run_with_bad_cohorts_is_resumed_to_the_same_bits(backend, tmp_path):
    trouble = dict.fromkeys(range(0, 20, 2), "error")

    def run(number, **more):
        with rounds(FEDAVG, setup(trouble=trouble), backend, rounds=number, cohort_size=1, **more) as study:
            study.run()
            return dict(study.server.values), [r.clients for r in study.history], study.troubled()

    whole = run(12)
    assert 0 in whole[1]
    for number in (1, 5, 12):
        found = run(number, folder=tmp_path, resume=True)
    assert same(found[0], whole[0])
    assert found[1:] == whole[1:]


@each_kind
def test_what_hits_everybody_is_an_error_that_says_why(backend, kind):
    everybody = dict.fromkeys(range(20), kind)
    with (
        rounds(FEDAVG, setup(trouble=everybody), backend, rounds=50) as study,
        pytest.raises(CohortFailedError, match=f"all 20 devices of rounds 0 to .*{KINDS[kind]}: ") as caught,
    ):
        study.run()
    assert len(study.history) < 49  # and not after all the rounds
    if kind == "error":
        assert "TypeError: no rows for" in caught.value.message
        assert "small.py, line" in caught.value.message


def test_a_run_that_merged_nobody_is_an_error_however_short(backend, tmp_path):
    everybody = dict.fromkeys(range(20), "error")
    for _ in range(2):  # also when it is resumed
        with (
            rounds(
                FEDAVG, setup(trouble=everybody), backend, rounds=1, folder=tmp_path, resume=True
            ) as study,
            pytest.raises(CohortFailedError, match="6 UnusableRowsError"),
        ):
            study.run()


def test_a_round_with_too_few_left_for_its_rule_is_recorded_unless_all_of_it_is_there(backend):
    from pfl_mobile.errors import TooFewUpdatesError
    from pfl_mobile.merge.robust import Krum

    rule = Krum(attackers=0.1)
    cohorts = [[0, 2, 4, 6, 8, 10], [0, 1, 3, 5, 7, 9], [0, 2, 4, 6, 8, 10]]
    trouble = dict.fromkeys([1, 3, 5, 7, 9], "empty")
    with rounds(FEDAVG, setup(trouble=trouble), backend, rule=rule, choose=cohorts.__getitem__) as study:
        study.run()
        assert [r.clients for r in study.history] == [6, 0, 6]
        assert study.history[1].failures == {"NoExamplesError": 5, "TooFewUpdatesError": 1}
    with (
        rounds(FEDAVG, setup(), backend, rule=rule, choose=lambda number: [0]) as study,
        pytest.raises(TooFewUpdatesError),
    ):
        study.run()
