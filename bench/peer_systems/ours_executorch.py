"""Our bundle on ExecuTorch as it comes."""

from peer_systems.ours import Engine

PACKAGES = ("executorch",)
_engine = Engine("executorch")
runtime, files, load = _engine.runtime, _engine.files, _engine.load
