"""Which scenarios of ``conformance/scenarios`` pass in Swift on Linux, written down anew.

    python ios/scenarios.py

Starts a real ``pfl serve``, and a device of Python where one is needed, for each scenario of rounds; all of them are
carried out by ``ScenariosTests``. The bundles must be there (``python android/desktop.py``).
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
SCENARIOS = PROJECT / "conformance" / "scenarios"


def main() -> int:
    """Carry them out."""
    found = importlib.util.spec_from_file_location("pfl_federation", PROJECT / "android" / "federation.py")
    assert found is not None
    assert found.loader is not None
    federation = importlib.util.module_from_spec(found)
    found.loader.exec_module(federation)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        aggregators = {}
        for path in sorted(SCENARIOS.glob("*.json")):
            steps = json.loads(path.read_text())["steps"]
            for step in steps:
                if step["do"] == "serve":
                    bundle = PROJECT / "android" / "target" / "bundles" / f"{step['bundle']}.pflb"
                    served = federation.federation(bundle, folder / path.stem, alone=step.get("alone", False))
                    aggregators[path.name] = f"http://127.0.0.1:{stack.enter_context(served)}"
        settings = {"PFL_AGGREGATORS": json.dumps(aggregators), "PFL_SCENARIOS_WRITE": "1"}
        # as `make ios` builds it, so that nothing is built twice
        build = {"PFL_STRICT": "1", "PFL_APPLE_STUBS": "1"}
        command = [PROJECT / "ios" / "swift.sh", "test", "--filter", "ScenariosTests"]
        return subprocess.run(command, env=os.environ | settings | build, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
