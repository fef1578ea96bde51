"""The benchmark of simulators in small: same data and models for all, and honest about what fails."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pfl_mobile.plan.phases import TrainPhase
from pfl_mobile.rows import epoch_order

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import environments
from sim import driver, report
from sim.job import Job, Meter
from sim.watch import MARK, Watch, end_all, marked
from sim.workloads import WORKLOADS, LazyImages, Prepared, loss, prepare


@pytest.fixture(params=sorted(WORKLOADS))
def prepared(request: pytest.FixtureRequest, tmp_path: Path) -> Prepared:
    prepare(WORKLOADS[request.param], tmp_path, rounds=2, clients=6, cohort=3)
    return Prepared(request.param, tmp_path)


def test_plain_and_personalized_model_are_the_same(prepared: Prepared) -> None:
    example = prepared.example()
    x = example[prepared.workload.inputs]
    plain, ours = prepared.module(), prepared.personalized()
    torch.testing.assert_close(plain(x), ours(x))
    assert list(ours.values()) == list(prepared.initial())
    task_loss = prepared.task().losses(ours(x), example).mean()
    torch.testing.assert_close(loss(plain(x), example["labels"]), task_loss)


def test_batches_come_in_the_order_of_the_device(prepared: Prepared) -> None:
    rows = prepared.rows(prepared.cohort(1)[2])
    (phase,) = [i for i, p in enumerate(prepared.plan().steps()) if isinstance(p, TrainPhase)]
    order = epoch_order(len(rows["labels"]), prepared.seed(1, prepared.cohort(1)[2]), phase, 0)
    labels = torch.cat([y for _, y in prepared.batches(1, 2)])
    np.testing.assert_array_equal(labels.numpy(), rows["labels"][order])


def test_cohorts_begin_again_after_the_last(prepared: Prepared) -> None:
    assert prepared.cohort(2) == prepared.cohort(0)
    assert prepared.seed(2, 5) == prepared.seed(0, 5)
    np.testing.assert_array_equal(prepared.order(3, 1), prepared.order(1, 1))


def test_preparing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    digests = {prepare(WORKLOADS["tiny"], tmp_path / d, rounds=1, clients=4, cohort=2) for d in "ab"}
    assert len(digests) == 1


def small(**changes: object) -> driver.Options:
    return driver.Options(
        **{
            "workloads": ("tiny",),
            "systems": ("sequential",),
            "processes": 1,
            "repeats": 1,
            "seconds": 0.01,
            "rounds": 2,
            "clients": 12,
            "cohort": 4,
            **changes,  # type: ignore[arg-type]
        }
    )


def test_a_system_that_cannot_be_installed_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "No matching distribution found for pfl")

    monkeypatch.setenv("PFL_CACHE", str(tmp_path))
    monkeypatch.setattr(environments.subprocess, "run", fail)
    result = driver.compare(small(systems=("pfl_research",)), lambda _: None)
    (error,) = result["errors"]
    assert error["system"] == "pfl_research"
    assert "No matching distribution" in error["error"]
    assert "pfl_research" not in result["workloads"]["tiny"]
    assert "pfl_research" in report.table(result, ("pfl_research",))
    assert not list(tmp_path.rglob("complete"))


def test_a_run_that_fails_is_an_error_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(driver.MODULES, "pfl_mobile", "nothing_of_this_name")
    result = driver.compare(small(systems=("pfl_mobile", "sequential")), lambda _: None)
    assert [e["system"] for e in result["errors"]] == ["pfl_mobile"]
    assert "nothing_of_this_name" in result["errors"][0]["error"]
    row = result["workloads"]["tiny"]["sequential"]
    assert row["updates_per_s"] > 0
    assert row["peak_mb"] > 50
    assert row["startup_s"] > 0
    json.dumps(result)


@pytest.mark.slow
def test_ours_trains_the_same_model_as_the_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(driver.SETTINGS, "pfl_mobile", {"lanes": 3})
    result = driver.compare(small(systems=("pfl_mobile", "sequential"), processes=2), lambda _: None)
    assert result["errors"] == []
    tiny = result["workloads"]["tiny"]
    assert 0 < tiny["rounding_diff"] < 1e-6
    assert tiny["max_model_diff"] < 1e-6 < 1e-3 < tiny["model_change"]
    assert result["ratios"]["tiny"]["sequential"] > 0
    assert "by rounding alone" in report.table(result, ("pfl_mobile", "sequential"))


@pytest.mark.slow
def test_a_generated_population_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "POPULATIONS", ((100_000, 3),))
    result = driver.populations(small(), lambda _: None)
    assert result["errors"] == []
    (row,) = result["population"]
    assert row["clients"] == 100_000
    assert row["updates_per_s"] > 0
    assert "100000" in report.population_table(result)


def test_lazy_images_are_always_the_same() -> None:
    one, other = LazyImages(12), LazyImages(12)
    rows, test = one(5)
    np.testing.assert_array_equal(rows["x"], other(5)[0]["x"])
    assert not np.array_equal(rows["labels"][:10], one(6)[0]["labels"][:10])
    assert len(test["weight"]) == 0


def test_meter_leaves_the_first_round_out_and_compares_after_the_agreed_one(tmp_path: Path) -> None:
    meter = Meter(Job("tiny", "", str(tmp_path), processes=1, rounds=3, seconds=0))
    more = [meter.round_done(5, lambda i=i: {"w": np.full(2, i)}) for i in range(3)]
    assert more == [True, True, False]
    meter.report(("numpy", "no-such-package"))
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["updates"] == 10
    assert written["versions"]["no-such-package"] == "not installed"
    assert np.load(tmp_path / "model.npz")["w"].tolist() == [2, 2]


def test_watch_counts_processes_that_left_the_group() -> None:
    code = (
        "import subprocess, sys; "
        "subprocess.Popen([sys.executable, '-c', 'x = bytearray(80 << 20); input()'], stdin=subprocess.PIPE, "
        "start_new_session=True); print(flush=True); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={MARK: "abc"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    watch = Watch("abc")
    for _ in range(200):
        watch.sample()
        if watch.peak_mb > 80:
            break
    assert watch.peak_mb > 80
    assert len(marked("abc")) == 2
    end_all("abc")
    process.wait()
    end = time.monotonic() + 20
    while marked("abc") and time.monotonic() < end:  # killed at once, gone a little later
        time.sleep(0.01)
    assert not marked("abc")
