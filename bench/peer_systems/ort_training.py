"""ONNX Runtime's own training, in its last release: artifacts written from an ONNX file, and its ``Module``."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np

from peer_systems import given, onnx_file
from peer_systems.models import Workload
from peer_systems.running import Running

PACKAGES = ("onnxruntime-training-cpu",)
_ARTIFACTS = "ort_training"
#: A rate so large that what an SGD step leaves of the old values is below the rounding of the gradient.
_RATE = 2.0**40


def runtime() -> None:
    """Without the ``__init__`` of ``training``, which imports PyTorch for optimizers that nothing here uses."""
    import onnxruntime

    package = types.ModuleType("onnxruntime.training")
    package.__path__ = [str(Path(onnxruntime.__file__).parent / "training")]
    sys.modules[package.__name__] = package
    import onnxruntime.training.api


def _path(name: str) -> str:
    return f"net.{name}"  # as PyTorch's exporter names parameters of ``torch_models.Logits``


def prepare(workload: Workload, folder: Path) -> None:
    """Training model, optimizer and checkpoint from the ONNX file that ``onnx_file`` wrote."""
    import onnx
    from onnxruntime.training import artifacts

    model = onnx.load(folder / onnx_file.FILE)
    trained = [_path(name) for name in workload.trained]
    out = folder / _ARTIFACTS
    out.mkdir(exist_ok=True)
    artifacts.generate_artifacts(
        model,
        requires_grad=trained,
        frozen_params=[_path(name) for name in workload.shapes if name not in workload.trained],
        loss=artifacts.LossType.CrossEntropyLoss,
        optimizer=artifacts.OptimType.SGD,
        artifact_directory=out,
    )


def files(_: Workload, folder: Path) -> list[Path]:
    """A device that only trains needs no ``eval_model.onnx``."""
    names = ("training_model.onnx", "optimizer_model.onnx", "checkpoint")
    return [folder / _ARTIFACTS / name for name in names]


def load(workload: Workload, folder: Path) -> Running:
    """The artifacts on one thread."""
    import onnxruntime
    from onnxruntime.training.api import CheckpointState, Module, Optimizer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    out = folder / _ARTIFACTS
    state = CheckpointState.load_checkpoint(out / "checkpoint")
    module = Module(out / "training_model.onnx", state, session_options=options)
    batch = given.batch(folder)
    x, labels = batch[workload.input], batch["labels"].reshape(-1)
    module.train()

    def step() -> object:
        module.lazy_reset_grad()
        return module(x, labels)

    def gradients() -> dict[str, np.ndarray]:
        optimizer = Optimizer(out / "optimizer_model.onnx", module)
        optimizer.set_learning_rate(_RATE)
        step()
        optimizer.step()
        # its loss is a mean
        return {
            name: state.parameters[_path(name)].data * np.float32(-labels.size / _RATE)
            for name in workload.trained
        }

    return Running(step, gradients)
