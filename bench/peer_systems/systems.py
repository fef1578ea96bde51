"""Which systems are compared, what each needs, and what is written for it beforehand."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class System:
    """One row of the tables.

    Attributes:
        name: also of its file in this folder, which its process runs.
        label: in the table.
        wanted: what pip installs into an environment of its own; nothing for those that run in ours.
        prepared: files in this folder that write what it loads, in this order; one of its own name runs in its
            environment, others in ours, once for all systems.
    """

    name: str
    label: str
    wanted: tuple[str, ...] = ()
    prepared: tuple[str, ...] = ()


#: What all others are compared with.
EAGER = "eager"
SYSTEMS = {
    system.name: system
    for system in (
        System(EAGER, "PyTorch eager"),
        System("ours_executorch", "**pfl-mobile on ExecuTorch**", prepared=("ours",)),
        System("ours_onnxruntime", "**pfl-mobile on ONNX Runtime**", prepared=("ours",)),
        System("executorch_stock", "ExecuTorch's own training", prepared=("executorch_stock",)),
        System(
            "ort_training",
            "ONNX Runtime training (discontinued)",
            (
                "onnxruntime-training-cpu>=1.19,<1.20",
                "onnx>=1.17,<1.18",
                "numpy>=1.26,<2",
                "safetensors>=0.5,<1",
            ),
            ("onnx_file", "ort_training"),
        ),
        System(
            "mlx_cpu",
            "MLX on the processor",
            ("mlx[cpu]>=0.32,<0.33", "numpy>=1.26,<3", "safetensors>=0.5,<1"),
        ),
        System(
            "litert",
            "LiteRT training signature",
            (
                "tensorflow-cpu>=2.21,<2.22",
                "ai-edge-litert>=2.3,<2.4",
                "numpy>=1.26,<3",
                "safetensors>=0.5,<1",
            ),
            ("litert",),
        ),
    )
}
