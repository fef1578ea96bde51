"""LiteRT with operators of TensorFlow."""

from peer_systems.litert import Signature

PACKAGES = ("tensorflow-cpu",)
_signature = Signature(select=True)
runtime, prepare, files, load = _signature.runtime, _signature.prepare, _signature.files, _signature.load
