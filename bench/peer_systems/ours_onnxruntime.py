"""Our bundle on ONNX Runtime as it comes."""

from peer_systems.ours import Engine

PACKAGES = ("onnxruntime",)
_engine = Engine("onnxruntime")
runtime, files, load = _engine.runtime, _engine.files, _engine.load
