"""LiteRT with its own operators alone."""

from peer_systems.litert import Signature

PACKAGES = ("ai-edge-litert", "tensorflow-cpu")
_signature = Signature(select=False)
runtime, prepare, files, load = _signature.runtime, _signature.prepare, _signature.files, _signature.load
