"""The model as an ONNX file, written by PyTorch's exporter, in the form that ONNX Runtime's training tools take.

They are of 2024: operators up to opset 21, no ``CastLike``, and a layer norm that names its mean and inverse deviation.
"""

from __future__ import annotations

from pathlib import Path

from peer_systems import given
from peer_systems.models import Workload

FILE = "model.onnx"


def runtime() -> None:
    """PyTorch."""
    import torch  # noqa: F401


def prepare(workload: Workload, folder: Path) -> None:
    """Write ``model.onnx``: the batch's input ``x`` to ``logits`` of [labels, classes]."""
    import onnx
    import torch

    from peer_systems import torch_models

    net = torch_models.from_file(workload, folder)
    x = torch.from_numpy(given.batch(folder)[workload.input])
    path = folder / FILE
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        torch.onnx.export(
            net,
            (x,),
            path,
            dynamo=True,
            opset_version=18,
            optimize=False,
            external_data=False,
            input_names=["x"],
            output_names=["logits"],
            verbose=False,
        )
    model = onnx.load(path)
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {known.name: known.type.tensor_type.elem_type for known in [*graph.value_info, *graph.input]}
    types |= {known.name: known.data_type for known in graph.initializer}
    for node in model.graph.node:
        if node.op_type == "CastLike":
            like = types[node.input[1]]
            node.op_type = "Cast"
            del node.input[1:]
            node.attribute.append(onnx.helper.make_attribute("to", like))
        if node.op_type == "LayerNormalization":
            outputs = [f"{node.output[0]}.{name}" for name in ("mean", "deviation")]
            node.output.extend(outputs[len(node.output) - 1 :])
    model.ir_version = 9
    onnx.save(model, path)
