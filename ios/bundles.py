"""What the tests of Core ML need, put into ``ios/target/bundles``: bundles for it, a user's examples, and where Python ends.

Python trains on the interpreter of Core ML's packages (``coreml-reference``), which stands for Core ML on the machine that
exports. On a Mac the Swift tests train on Core ML itself from the same values with the same examples, and have to end near
it. What is there and current is kept.

    python ios/bundles.py          tiny, keyboard and activity
    python ios/bundles.py tiny     one of them
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from pfl_mobile.rows import Rows

PROJECT = Path(__file__).resolve().parents[1]
BUNDLES = PROJECT / "ios/target/bundles"
sys.path[:0] = [str(PROJECT), str(PROJECT / "android")]  # the models are those of the tests and of the Kotlin side

#: How the programs are written: for iOS 18, for iOS 17, in mixed precision.
TARGETS = ("ios", "ios17", "ios-mixed")


def of_tiny() -> tuple[Callable[[], object], list[str] | Rows, list[str] | Rows]:
    """A decoder of a few thousand numbers."""
    from tests import tiny

    texts = tiny.texts("ann")
    return tiny.deployment, texts[:24], texts[24:]


def of_keyboard() -> tuple[Callable[[], object], list[str] | Rows, list[str] | Rows]:
    """The keyboard of the sample app."""
    import recipes

    messages = recipes.messages()
    return recipes.keyboard, messages[:-40], messages[-40:]


def of_activity() -> tuple[Callable[[], object], list[str] | Rows, list[str] | Rows]:
    """A classifier of movements."""
    import recipes

    movements = recipes.movements()
    train, holdout = ({k: v[part] for k, v in movements.items()} for part in (slice(-40), slice(-40, None)))
    return recipes.activity, train, holdout


MADE = {"tiny": of_tiny, "keyboard": of_keyboard, "activity": of_activity}


def export(name: str) -> None:
    """Write the bundles of a model, its examples, and the states that Python ends with."""
    from pfl_exporters.export import export_bundle
    from pfl_mobile.files.tensors import tensors_to_bytes

    deployment, train, holdout = MADE[name]()
    BUNDLES.mkdir(parents=True, exist_ok=True)
    if isinstance(train, list):
        (BUNDLES / f"{name}-examples.json").write_text(json.dumps({"train": train, "holdout": holdout}))
    else:
        for part, rows in (("train", train), ("holdout", holdout)):
            (BUNDLES / f"{name}-{part}.safetensors").write_bytes(tensors_to_bytes(rows))
    for target in TARGETS:
        path = BUNDLES / f"{name}-{target}.pflb"
        if path.is_file():
            continue
        print(f"export {path.name}", flush=True)
        # a run that was ended leaves nothing that looks whole
        scratch = path.with_suffix(".new.pflb")
        scratch.unlink(missing_ok=True)
        export_bundle(deployment(), [target], scratch)
        trained(scratch, train, holdout, BUNDLES / f"{name}-{target}-state")
        scratch.rename(path)


def trained(path: Path, train: list[str] | Rows, holdout: list[str] | Rows, to: Path) -> None:
    """Learn from the examples on the interpreter, and keep the state."""
    from pfl_mobile.bundle import Bundle
    from pfl_mobile.engines import open_session
    from pfl_mobile.local.evaluation import model_id, text_encoder
    from pfl_mobile.local.state import PersonalStateStore
    from pfl_mobile.local.trainer import LocalTrainer
    from pfl_mobile.plan.schema import Plan

    shutil.rmtree(to, ignore_errors=True)
    with Bundle.open(path) as bundle, open_session(bundle, "coreml-reference", threads=1, trusted=True) as session:
        plan, encoder = Plan.load(bundle.plan_json()), text_encoder(bundle)
        trainer = LocalTrainer(session, plan, bundle.manifest.tensors, bundle.values(), encoder=encoder)
        report = trainer.personalize(train, holdout, PersonalStateStore(to, model_id(bundle)))
    if report.status != "adopted":
        raise AssertionError(f"Python's guard did not adopt what it learned on {path.name}: {report}")
    print(f"Python took {report.steps} steps on {path.name}", flush=True)


if __name__ == "__main__":
    for chosen in sys.argv[1:] or MADE:
        export(chosen)
