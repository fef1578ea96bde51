from __future__ import annotations

import pytest

from pfl_mobile.errors import ConfigError, MissingDependencyError, WorkerDiedError
from pfl_mobile.simulation import ray_backend
from pfl_mobile.simulation.backend import LocalBackend
from pfl_mobile.simulation.ray_backend import RayBackend
from pfl_mobile.strategies import create
from tests.simulation.small import rounds, same, setup

DITTO = create("ditto")


def test_without_ray_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(ray_backend, "ray", None)
    with pytest.raises(MissingDependencyError, match="Ray is not installed") as caught:
        RayBackend()
    assert "pfl-mobile[ray]" in caught.value.mend


@pytest.fixture(scope="module")
def cluster():
    """A local Ray cluster of three worker processes."""
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def expected():
    with LocalBackend(0) as backend, rounds(DITTO, setup(), backend) as study:
        return dict(study.run().values), study.evaluate(), study.evaluate(adapt=False)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
class TestOnACluster:
    def test_results_are_those_of_the_local_backend(self, expected):
        with RayBackend() as backend, rounds(DITTO, setup(), backend) as study:
            assert same(study.run().values, expected[0])
            assert study.evaluate() == expected[1]
            assert study.evaluate(adapt=False) == expected[2]
            assert study.effective()["backend"]["cpus"] == 3

    def test_workers_that_are_killed_in_the_middle_change_nothing(self, expected, tmp_path):
        trouble = dict.fromkeys(range(0, 20, 6), "kill once")
        with (
            RayBackend(in_flight=2) as backend,
            rounds(DITTO, setup(trouble=trouble, marks=str(tmp_path)), backend) as study,
        ):
            assert same(study.run().values, expected[0])
            assert study.evaluate() == expected[1]
        assert any(tmp_path.iterdir())

    def test_a_job_whose_workers_always_die_ends_with_a_typed_error(self):
        with (
            RayBackend() as backend,
            rounds(DITTO, setup(trouble=dict.fromkeys(range(20), "kill")), backend, job_size=6) as study,
            pytest.raises(WorkerDiedError, match="4 Ray workers died"),
        ):
            study.run()

    def test_exceptions_keep_their_type(self):
        given = setup(trouble=dict.fromkeys(range(20), "memory"))
        with RayBackend() as backend, rounds(DITTO, given, backend) as study:
            with pytest.raises(MemoryError, match="no rows for") as caught:
                study.run()
            assert "in train" in "".join(caught.value.__notes__)

    def test_a_user_whose_rows_cannot_be_read_ends_nothing(self):
        with (
            RayBackend() as backend,
            rounds(DITTO, setup(trouble={4: "error"}), backend, cohort_size=20) as study,
        ):
            study.run()
            assert {r.clients for r in study.history} == {19}
            assert study.troubled()[4].why.startswith("UnusableRowsError: ")

    def test_wrong_arguments_are_refused(self):
        with pytest.raises(ConfigError, match="in_flight"):
            RayBackend(in_flight=0)
