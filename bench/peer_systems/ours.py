"""Bundles of pfl-mobile: what ``ours_executorch`` and ``ours_onnxruntime`` share. The plan plays no part in a step."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from peer_systems import given
from peer_systems.models import Workload
from peer_systems.running import Running

if TYPE_CHECKING:
    from torch import Tensor

    from pfl_mobile import Deployment

#: The bundle in the run's folder.
_BUNDLE = "bundle"


def _language_model(workload: Workload, frozen: dict[str, Tensor]) -> Deployment:
    """From a folder of transformers, as ``pfl-export hf:FOLDER`` does."""
    from llama import write_folder

    from peer_systems import torch_models
    from pfl_exporters.hugging_face import Shape, by_leaf, deployment
    from pfl_mobile import LoRA

    targets, rank = torch_models.LORA[workload.name]
    rows, length = workload.batch["tokens"][0]
    with tempfile.TemporaryDirectory(prefix="pfl-bench-") as folder:
        write_folder(torch_models.build(workload, frozen), Path(folder))  # type: ignore[arg-type]
        return deployment(
            folder, [LoRA(by_leaf(targets), rank=rank)], shape=Shape(rows, length), name=workload.name
        )


def _plain(workload: Workload, values: dict[str, Tensor], batch: dict[str, Tensor]) -> Deployment:
    """From a module, as anyone's own model: the first rows of the batch are the example for ``predict``."""
    import torch

    from peer_systems import torch_models
    from pfl_mobile import (
        ClassificationTask,
        Deployment,
        Head,
        LoRA,
        Plan,
        Sgd,
        TokenTask,
        TrainPhase,
        personalize,
    )

    net = torch_models.build(workload, values)
    batch = {**batch, "weight": torch.ones(batch["labels"].shape)}
    classes = workload.batch["labels"][1]
    example = {workload.input: batch[workload.input][:1]}
    task: Any
    if workload.input == "tokens":
        task, example["position"] = TokenTask(classes), torch.tensor([batch["tokens"].shape[1] - 1])
    else:
        task = ClassificationTask(classes)
    modules: list[Any] = [Head("*")]
    if workload.name in torch_models.LORA:
        targets, rank = torch_models.LORA[workload.name]
        modules = [LoRA(tuple(f"*.{name}" for name in targets), rank=rank)]
    plan = Plan(phases=(TrainPhase(steps=1, optimizer=Sgd(lr=0.1)),))
    return Deployment(workload.name, personalize(net, modules), task, batch, plan, predict_batch=example)


def runtime() -> None:
    """The exporter."""
    import torch

    import pfl_exporters.export

    assert pfl_exporters.export
    torch.set_num_threads(1)


def prepare(workload: Workload, folder: Path) -> None:
    """Export one bundle for both engines."""
    import torch

    from peer_systems import torch_models
    from pfl_exporters.export import export_bundle

    trained, frozen = (
        {name: torch.from_numpy(value) for name, value in part.items()}
        for part in given.values(folder, workload)
    )
    if workload.name == "smollm2":
        made = _language_model(workload, frozen)
    else:
        batch = {name: torch.from_numpy(value) for name, value in given.batch(folder).items()}
        made = _plain(workload, frozen if workload.name in torch_models.LORA else trained, batch)
    made.model.load_values(trained)
    export_bundle(made, ["android", "onnx"], folder / _BUNDLE)


class Engine:
    """Functions of a system's file for one engine."""

    def __init__(self, name: str) -> None:
        """Name of the engine."""
        self.name = name

    def runtime(self) -> None:
        """The engine's runtime, and what reads bundles."""
        import pfl_mobile.bundle.read
        from pfl_mobile.engines import load_engine

        assert pfl_mobile.bundle.read
        load_engine(self.name)

    def files(self, _: Workload, folder: Path) -> list[Path]:
        """The engine's programs and weights, and the initial values of what is trained."""
        from pfl_mobile.bundle.read import Bundle

        with Bundle.open(folder / _BUNDLE) as bundle:
            return [*bundle.engine_files(self.name).values(), folder / _BUNDLE / bundle.manifest.values]

    def load(self, workload: Workload, folder: Path) -> Running:
        """The bundle on one thread."""
        from pfl_mobile.bundle.read import Bundle
        from pfl_mobile.engines import open_session

        bundle = Bundle.open(folder / _BUNDLE)
        session = open_session(bundle, self.name, threads=1, trusted=True)
        batch = given.batch(folder)
        inputs = {**bundle.values(), **batch, "weight": np.ones(batch["labels"].shape, np.float32)}

        def step() -> dict[str, np.ndarray]:
            return session.run("gradients", inputs)

        def gradients() -> dict[str, np.ndarray]:
            out = step()
            return {name: out[f"grad.{name}"] for name in workload.trained}

        return Running(step, gradients)
