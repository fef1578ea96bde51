"""The comparison with peers without any peer: the same models for all, and a table that says what failed and why."""

from __future__ import annotations

import json
import mmap
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import measure
from llama import Size
from peer_systems import driver, given, models, report, torch_models, worker
from peer_systems.running import Running
from peer_systems.systems import EAGER, SYSTEMS

SMALL = {
    w.name: w
    for w in (
        models.mlp(inputs=5, hidden=4, rows=3),
        models.cnn(rows=2),
        models.decoder(words=11, width=8, layers=2, heads=2, rows=2, length=5),
        models.llama(Size(layers=2, width=16, inner=12, heads=4, key_heads=2, words=13, length=6)),
    )
}


class NumpyOps:
    """``Ops`` from their definitions, in float64."""

    def linear(self, x: Any, weight: Any, bias: Any = None) -> Any:
        return x @ weight.T + (0 if bias is None else bias)

    def embedding(self, table: Any, ids: Any) -> Any:
        return table[ids]

    def relu(self, x: Any) -> Any:
        return np.maximum(x, 0)

    def gelu(self, x: Any) -> Any:
        return x * torch.special.ndtr(torch.from_numpy(x)).numpy()

    def silu(self, x: Any) -> Any:
        return x / (1 + np.exp(-x))

    def layer_norm(self, x: Any, weight: Any, bias: Any) -> Any:
        around = x - x.mean(-1, keepdims=True)
        return around / np.sqrt((around**2).mean(-1, keepdims=True) + 1e-5) * weight + bias

    def rms_norm(self, x: Any, weight: Any) -> Any:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight

    def rotary(self, x: Any) -> Any:
        half = x.shape[-1] // 2
        turn = np.exp(1j * np.outer(np.arange(x.shape[2]), 10000.0 ** (-np.arange(half) / half)))
        turned = (x[..., :half] + 1j * x[..., half:]) * turn
        return np.concatenate([turned.real, turned.imag], -1)

    def attention(self, q: Any, k: Any, v: Any) -> Any:
        k, v = (np.repeat(one, q.shape[1] // one.shape[1], 1) for one in (k, v))
        scores = np.exp(q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])) * np.tri(q.shape[2])
        return scores / scores.sum(-1, keepdims=True) @ v

    def split(self, x: Any, heads: int) -> Any:
        return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)

    def merge(self, x: Any) -> Any:
        return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)

    def conv3(self, x: Any, weight: Any, bias: Any) -> Any:
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))
        return np.einsum("bchwij,ocij->bohw", windows, weight, optimize=True) + bias[:, None, None]

    def pool2(self, x: Any) -> Any:
        return np.lib.stride_tricks.sliding_window_view(x, (2, 2), (2, 3))[:, :, ::2, ::2].max((-1, -2))

    def reshape(self, x: Any, shape: tuple[int, ...]) -> Any:
        return x.reshape(shape)

    def cross_entropy(self, logits: Any, labels: Any) -> Any:
        logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return -logs[np.arange(len(labels)), labels].sum()


def test_no_two_workloads_share_a_name() -> None:
    assert list(models.WORKLOADS) == list(SMALL) == ["mlp", "cnn", "decoder", "smollm2"]
    assert sum(np.prod(s) for s in models.WORKLOADS["smollm2"].shapes.values()) == pytest.approx(
        135e6, rel=0.01
    )


@pytest.mark.parametrize("workload", SMALL.values(), ids=SMALL)
def test_torch_module_and_description_are_the_same_model(workload: models.Workload, tmp_path: Path) -> None:
    given.write(workload, tmp_path)
    values, batch = workload.draw(), given.batch(tmp_path)
    assert {name: v.shape for name, v in values.items()} == workload.shapes
    net = torch_models.from_file(workload, tmp_path).double()
    x = torch.from_numpy(batch[workload.input])
    expected = torch_models.loss(
        net, x.double() if x.is_floating_point() else x, torch.from_numpy(batch["labels"])
    )
    found = workload.loss(NumpyOps(), {n: v.astype(np.float64) for n, v in values.items()}, batch)
    assert found == pytest.approx(expected.item(), rel=1e-6)  # transformers' rotary embedding is float32
    assert found / batch["labels"].size > 1.0


@pytest.mark.parametrize("workload", [SMALL["mlp"], SMALL["decoder"]], ids=["mlp", "decoder"])
def test_expected_gradients_are_those_of_the_description(workload: models.Workload, tmp_path: Path) -> None:
    given.write(workload, tmp_path)
    gradients = torch_models.gradients(workload, tmp_path, torch.float64)
    assert tuple(gradients) == workload.trained
    values = {name: v.astype(np.float64) for name, v in workload.draw().items()}
    batch = {
        n: v.astype(np.float64) if v.dtype == np.float32 else v for n, v in given.batch(tmp_path).items()
    }
    rng = np.random.default_rng(0)
    for name, gradient in gradients.items():
        along = rng.standard_normal(gradient.shape) * 1e-5
        after, before = (
            workload.loss(NumpyOps(), {**values, name: values[name] + sign * along}, batch)
            for sign in (1, -1)
        )
        assert (after - before) / 2 == pytest.approx(float((gradient * along).sum()), rel=1e-3, abs=1e-9), (
            name
        )


def test_values_of_another_model_are_refused() -> None:
    workload = SMALL["decoder"]
    values = {name: torch.from_numpy(v) for name, v in workload.draw().items()}
    del values["blocks.1.q.lora_B"]
    with pytest.raises(RuntimeError, match=r"blocks\.1\.q\.lora_B"):
        torch_models.build(workload, values)


class Counting:
    """A system that counts its steps."""

    def __init__(self) -> None:
        self.steps = 0
        self.held: list[bytearray] = []

    def files(self, _: models.Workload, folder: Path) -> list[Path]:
        return [folder / "a", folder / "b"]

    def load(self, _: models.Workload, __: Path) -> Running:
        self.held.append(bytearray(b"x") * 30_000_000)
        return Running(self.step, lambda: {"w": np.ones(2, np.float32)})

    def step(self) -> None:
        self.steps += 1


def test_worker_counts_files_memory_and_steps(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"123")
    (tmp_path / "b").write_bytes(b"4567")
    module = Counting()
    serving = worker.Worker(module)
    said = serving.answer(json.dumps({"do": "load", "workload": "mlp", "folder": str(tmp_path)}))
    assert said["file_bytes"] == 7
    assert said["anonymous_bytes"] > 25_000_000
    assert module.steps == len(said["ms"]) == 2
    assert len(serving.answer('{"do": "steps", "count": 3}')["ms"]) == 3
    assert module.steps == 5
    serving.answer(json.dumps({"do": "gradients", "out": str(tmp_path / "g.npz")}))
    assert np.load(tmp_path / "g.npz")["w"].tolist() == [1, 1]


def test_worker_refuses_steps_of_nothing() -> None:
    with pytest.raises(RuntimeError, match="nothing is loaded"):
        worker.Worker(Counting()).answer('{"do": "steps", "count": 1}')


def test_an_exception_is_said_in_one_line() -> None:
    assert worker.said(ValueError("\n  no operator X\nat line 5")) == "ValueError: no operator X"
    assert worker.said(KeyError()) == "KeyError"


def test_a_runtime_that_cannot_be_imported_is_a_reason(tmp_path: Path) -> None:
    with pytest.raises(driver.SystemFailed, match=r"ModuleNotFoundError: .*nothing_of_this_name"):
        driver.Process(Path(sys.executable), "nothing_of_this_name", tmp_path / "log", 0)


WORKER = """
import json, sys, os
import numpy as np

system = sys.argv[1]
print(json.dumps({"versions": {system: "1.0"}}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    answer = {}
    if asked["do"] == "prepare" and system == "reference":
        np.savez(asked["folder"] + "/expected.npz", w=np.array([1.0, -4.0]))
    if asked["do"] == "prepare" and system == "ours":
        answer = {"error": "ExportError: no | such operator"}
    if asked["do"] == "load" and system == "litert":
        print("cannot go on", file=sys.stderr, flush=True)
        os._exit(3)
    if asked["do"] == "load":
        answer = {"anonymous_bytes": 2_500_000, "mapped_bytes": 0, "file_bytes": 1000}
        answer["ms"] = [200.0 if system == "mlx_cpu" else 15.0]
    if asked["do"] == "steps":
        answer = {"ms": [2.0 if system == "eager" else 5.0] * asked["count"]}
    if asked["do"] == "gradients":
        off = {"eager": 4e-6, "executorch_stock": 40.0, "mlx_cpu": 0.0, "ort_training": 0.0}[system]
        np.savez(asked["out"], **{"v" if system == "ort_training" else "w": np.array([1.0 + off, -4.0])})
        answer = {"ms": [7.0]}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def acted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, driver.Row]]:
    """A comparison in which a program of ours acts as every system."""
    fake = tmp_path / "bench" / "peer_systems"
    fake.mkdir(parents=True)
    (fake / "__init__.py").touch()
    (fake / "worker.py").write_text(WORKER)
    monkeypatch.setattr(driver, "_BENCH", tmp_path / "bench")

    def run(*systems: str) -> dict[str, driver.Row]:
        pythons = dict.fromkeys(systems, Path(sys.executable))
        folder = tmp_path / "files"
        folder.mkdir()
        options = driver.Options(rounds=3, seconds=0.01, patience=0.05)
        return driver.Comparison(SMALL["mlp"], pythons, folder, options, lambda _: None).run()

    return run


def test_systems_that_fail_say_why_and_the_others_go_on(acted: Callable[..., dict[str, driver.Row]]) -> None:
    systems = (
        EAGER,
        "ours_executorch",
        "ours_onnxruntime",
        "executorch_stock",
        "ort_training",
        "mlx_cpu",
        "litert",
    )
    rows = acted(*systems)
    assert (
        rows["ours_executorch"].failure
        == rows["ours_onnxruntime"].failure
        == "ExportError: no | such operator"
    )
    assert rows["litert"].failure == "the process ended (exit status 3); it said last: cannot go on"
    assert rows["ort_training"].failure == "no gradient w of shape [2]"
    assert rows[EAGER].error == pytest.approx(1e-6)
    assert rows["executorch_stock"].error == pytest.approx(10)
    # one step while the last took longer than a turn, then as many as fit; where the first was too long, the last
    assert len(rows[EAGER].times) == 1 + 5 + 5
    assert len(rows["executorch_stock"].times) == 1 + 2 + 2
    assert rows["mlx_cpu"].times == [7.0]
    found = driver.summary(systems, rows)
    assert found["executorch_stock"]["ratio"] == 2.5
    assert found["mlx_cpu"]["steps"] == 1
    text = report.table(found)
    assert "| PyTorch eager | 2.00 ms | 1.00 | 2.50 | 0.00 | 0.00 | 1.0e-06 |" in text
    assert "cannot: ExportError: no \\| such operator" in text
    assert "**wrong: 1.0e+01** (w)" in text
    json.dumps(found)


def test_without_eager_there_is_no_ratio(acted: Callable[..., dict[str, driver.Row]]) -> None:
    rows = acted("executorch_stock")
    found = driver.summary(("executorch_stock",), rows)
    assert found["executorch_stock"]["ratio"] is None
    assert "| 5.00 ms |  |" in report.table(found)


def test_a_peer_that_cannot_be_installed_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def python_of(system: str, wanted: tuple[str, ...], _: object) -> Path:
        if wanted:
            raise driver.EnvironmentFailed("pip failed: no wheels for this Python")
        return Path(sys.executable)

    monkeypatch.setattr(driver, "python_of", python_of)
    monkeypatch.setattr(driver.Comparison, "run", lambda self: {EAGER: driver.Row(failure="not tried")})
    result = driver.compare(driver.Options(("mlp",), (EAGER, "mlx_cpu")), lambda _: None)
    text = report.page({**result, "seconds": 1.0}, "COMMAND")
    assert "MLX on the processor | cannot: not installed: pip failed: no wheels for this Python |" in text
    assert models.WORKLOADS["mlp"].label in text
    assert "`COMMAND`" in text


@pytest.mark.parametrize(("got", "error"), [([1.0, -4.4], 0.1), ([np.nan, -4.0], np.inf)])
def test_error_is_relative_to_the_largest_entry(got: list[float], error: float) -> None:
    one = {"w": np.array(got), "v": np.zeros(1)}
    found, worst = driver.gradient_error(one, {"w": np.array([1.0, -4.0]), "v": np.zeros(1)})
    assert found == pytest.approx(error)
    assert worst == "w"


def test_every_system_has_a_file_and_bounds_of_its_versions() -> None:
    for system in SYSTEMS.values():
        for name in (system.name, *system.prepared):
            assert (Path(driver.__file__).parent / f"{name}.py").is_file()
        assert all("<" in wanted and ">=" in wanted for wanted in system.wanted)


def test_memory_of_work_is_what_it_adds() -> None:
    kept, added = measure.watched(lambda: bytearray(b"x") * 40_000_000)
    assert len(kept) == 40_000_000
    assert 35_000_000 < added.anonymous < 90_000_000


def test_memory_that_is_there_for_an_instant_counts() -> None:
    def work() -> None:
        held = mmap.mmap(-1, 60_000_000, flags=mmap.MAP_PRIVATE | mmap.MAP_POPULATE)
        held.close()

    added = [measure.watched(work)[1].anonymous for _ in range(5)]
    assert min(added) > 55_000_000
