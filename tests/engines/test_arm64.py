"""Programs on the ARM64 builds of the runtimes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from pfl_mobile.bundle import Bundle
from pfl_mobile.engines import arm64, open_isolated, open_session
from pfl_mobile.engines.compare import golden_check
from pfl_mobile.errors import EngineError, EngineUnavailableError, ProgramDiedError, UnknownNameError
from pfl_mobile.local.evaluation import text_encoder
from pfl_mobile.local.trainer import LocalTrainer
from pfl_mobile.modules.personalize import personalize
from pfl_mobile.plan.optimizers import Sgd
from pfl_mobile.plan.phases import TrainPhase
from pfl_mobile.plan.schema import Plan
from pfl_mobile.programs.deployment import Deployment, text_parts
from pfl_mobile.programs.tasks import TokenTask
from pfl_mobile.text.encoder import TextEncoder, WordTokenizer
from pfl_recipes.keyboard.model import Keyboard
from pfl_recipes.keyboard.recipe import KeyboardRecipe
from tests import tiny

if TYPE_CHECKING:
    from pfl_mobile.engines.base import EngineSession
    from tests.conftest import Export


#: Its blocks are one part.
BLOCKS = Path(__file__).parents[2] / "conformance" / "bundles" / "blocks"


@pytest.fixture
def there(on_arm64: bool) -> None:
    """Leave out what needs the tools where they are not installed."""
    if not on_arm64:
        pytest.skip(f"install {' '.join(arm64.missing_tools())}")


@pytest.mark.usefixtures("there")
def test_a_damaged_program_is_an_error(tiny_bundle: Path, tmp_path: Path) -> None:
    with Bundle.open(tiny_bundle) as bundle:
        files = {use: tmp_path / path.name for use, path in bundle.engine_files("onnxruntime").items()}
        for use, path in bundle.engine_files("onnxruntime").items():
            shutil.copy(path, files[use])
        files["predict"].write_bytes(files["predict"].read_bytes()[:200])
        names = {use: str(path) for use, path in files.items()}
        golden = bundle.golden()
        child = arm64.start_arm64("onnxruntime")
        with arm64.open_arm64("onnxruntime", names, bundle.manifest.programs, child=child) as session:
            with pytest.raises(EngineError, match=r"predict\.onnx"):
                session.run("predict", golden["predict"].inputs)
            found = session.run("evaluate", golden["evaluate"].inputs)  # it goes on
        np.testing.assert_allclose(found["loss_sum"], golden["evaluate"].outputs["loss_sum"], rtol=1e-5)
        # with other programs in place of those, too
        names |= {"predict": str(bundle.engine_files("onnxruntime")["predict"])}
        with arm64.open_arm64("onnxruntime", names, bundle.manifest.programs[-1:], child=child) as session:
            found = session.run("predict", golden["predict"].inputs)
        for name, want in golden["predict"].outputs.items():
            np.testing.assert_allclose(found[name], want, rtol=1e-5, atol=1e-6)
    # and with parts, whose calls are made here
    with Bundle.open(BLOCKS) as bundle:
        names = {use: str(path) for use, path in bundle.engine_files("onnxruntime").items()}
        with arm64.open_arm64("onnxruntime", names, bundle.manifest.programs, child=child) as session:
            assert golden_check(bundle, session).ok
        assert child.process is not None
        child.close()
        assert child.process is None


@pytest.mark.usefixtures("there")
def test_a_process_that_ends_is_an_error(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arm64, "_command", lambda engine, report: ["sleep", "60"])
    monkeypatch.setattr(arm64, "_SECONDS", 0.1)
    with Bundle.open(tiny_bundle) as bundle, pytest.raises(ProgramDiedError, match=r"more than 0\.1 s"):
        open_isolated(bundle, "onnxruntime", arch="arm64")


def test_missing_tools_are_named(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arm64, "_NATIVE", False)
    monkeypatch.setattr(arm64, "_JSON", Path("/nowhere"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with Bundle.open(tiny_bundle) as bundle, pytest.raises(EngineUnavailableError) as caught:
        open_isolated(bundle, "onnxruntime", arch="arm64")
    assert "apt-get install g++-aarch64-linux-gnu nlohmann-json3-dev qemu-user" in caught.value.mend


def test_unknown_architectures_and_engines_are_named(tiny_bundle: Path) -> None:
    with Bundle.open(tiny_bundle) as bundle:
        with pytest.raises(UnknownNameError, match="no architecture 'riscv'"):
            open_isolated(bundle, arch="riscv")
        with pytest.raises(EngineUnavailableError, match="'torch' is not run on ARM64"):
            open_isolated(bundle, "torch", arch="arm64")


@pytest.mark.usefixtures("there")
def test_a_wheel_that_cannot_be_had_is_named(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PFL_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with (
        Bundle.open(tiny_bundle) as bundle,
        pytest.raises(EngineUnavailableError, match=r"cannot be downloaded: .*onnxruntime"),
    ):
        open_isolated(bundle, "onnxruntime", arch="arm64")
    assert [path.name for path in (tmp_path / "arm64").iterdir()] == ["servers.lock"]


@pytest.mark.usefixtures("there")
def test_a_server_that_cannot_be_compiled_is_named(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PFL_CACHE", str(tmp_path))
    library = tmp_path / "arm64" / f"onnxruntime-{arm64._version('onnxruntime')}" / "onnxruntime/capi"
    library.mkdir(parents=True)
    (library / "libonnxruntime.so.1").touch()
    monkeypatch.setattr(arm64, "compiler", lambda: "false")
    with (
        Bundle.open(tiny_bundle) as bundle,
        pytest.raises(EngineUnavailableError, match="cannot be compiled"),
    ):
        open_isolated(bundle, "onnxruntime", arch="arm64")


def trained(session: EngineSession, bundle: Bundle, plan: Plan, texts: list[str]) -> dict[str, np.ndarray]:
    """The tensors after local training."""
    encoder = text_encoder(bundle)
    assert encoder is not None
    rows = encoder.encode(texts, drop_unknown=True)
    trainer = LocalTrainer(session, plan, bundle.manifest.tensors, bundle.values())
    report = trainer.personalize(rows, {name: value[-4:] for name, value in rows.items()})
    assert report.state is not None, report
    return dict(report.state.tensors)


def keyboard() -> Deployment:
    """The keyboard in its real size, with weights that nobody trained, and batches that emulation can do."""
    recipe = KeyboardRecipe()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    words = [*(f"word{i}" for i in range(recipe.model.vocabulary)), *" ".join(tiny.texts("cleo", 9)).split()]
    tokenizer = WordTokenizer.train([" ".join(words)], recipe.model.vocabulary)
    return Deployment(
        name="keyboard",
        model=personalize(Keyboard(recipe.model).eval(), recipe.modules(), seed=0),
        task=TokenTask(recipe.model.vocabulary + recipe.slots, top_k=recipe.suggestions),
        plan=recipe.plan(),
        **text_parts(TextEncoder(tokenizer, recipe.model.length, recipe.model.vocabulary, recipe.slots), 2),
    )


@pytest.mark.slow
@pytest.mark.usefixtures("there")
@pytest.mark.parametrize("engine", arm64.engines())
def test_steps_of_the_keyboard_give_the_same_tensors(engine: str, exported: Export) -> None:
    steps = int(os.environ.get("PFL_ARM64_STEPS", "5"))
    plan = Plan(
        phases=(TrainPhase(group=("*lora*",), steps=steps, optimizer=Sgd(lr=0.5), clip=1.0),), holdout=0.1
    )
    with Bundle.open(exported("keyboard", keyboard, ["android", "onnx"])) as bundle:
        with open_session(bundle, engine, threads=1, trusted=True) as session:
            here = trained(session, bundle, plan, tiny.texts("cleo", 24))
        with open_isolated(bundle, engine, arch="arm64") as session:
            there = trained(session, bundle, plan, tiny.texts("cleo", 24))
        start = bundle.values()
    moved = {name: float(np.linalg.norm(value - start[name])) for name, value in here.items()}
    assert sum(size > 0 for size in moved.values()) > 8
    for name, size in moved.items():
        assert float(np.linalg.norm(there[name] - here[name])) <= 1e-3 * size, name
