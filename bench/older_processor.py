"""Run a command on this machine as on one with AVX2 and no AVX-512: what libraries ask the processor is answered so.

    python bench/older_processor.py python bench/train_step.py --json

Libraries choose their kernels by the instruction ``cpuid``. Where they are loaded, each ``cpuid`` in them becomes a
trap whose handler asks the processor and leaves out what is newer than AVX2 (AVX-512, AVX-VNNI, AVX10, AMX). Nothing
is written to the libraries' files: an audit library of the dynamic linker does it in memory, before they are
initialised. Clock and caches stay those of this machine. Needs gcc and objdump; Linux on x86-64. The first run reads
the libraries (minutes); what it found is kept.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from pfl_mobile.files.cache_dir import cache_dir

#: Libraries of an installed environment that choose kernels by the processor.
_LIBRARIES = (
    "executorch/lib/*.so*",
    "executorch/extension/pybindings/*.so",
    "onnxruntime/capi/*.so*",
    "torch/lib/libtorch.so",
    "torch/lib/libtorch_cpu.so",
    "torch/lib/libc10.so",
    "torch/lib/libgomp*",
    "numpy.libs/*.so*",
    "numpy/_core/*.so",
)
#: Loaded before Python's packages, asked by code that the compiler writes (``__builtin_cpu_supports``).
_OF_THE_SYSTEM = ("/lib/x86_64-linux-gnu/libgcc_s.so.1", "/lib/x86_64-linux-gnu/libm.so.6")

_SOURCE = r"""
#define _GNU_SOURCE
#include <link.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>
#include <cpuid.h>

static void answer(int number, siginfo_t *info, void *given) {
    greg_t *registers = ((ucontext_t *)given)->uc_mcontext.gregs;
    uint32_t leaf = registers[REG_RAX], sub = registers[REG_RCX], a, b, c, d;
    __cpuid_count(leaf, sub, a, b, c, d);
    if (leaf == 7 && sub == 0) {
        b &= ~(1u << 16 | 1u << 17 | 1u << 21 | 1u << 26 | 1u << 27 | 1u << 28 | 1u << 30 | 1u << 31);
        c &= ~(1u << 1 | 1u << 6 | 1u << 11 | 1u << 12 | 1u << 14);
        d &= ~(1u << 2 | 1u << 3 | 1u << 8 | 1u << 22 | 1u << 23 | 1u << 24 | 1u << 25);
    } else if (leaf == 7 && sub == 1) {
        a &= ~(1u << 4 | 1u << 5 | 1u << 21 | 1u << 23);
        d &= ~(1u << 4 | 1u << 5 | 1u << 10 | 1u << 19);
    } else if (leaf == 0x24) {
        a = b = c = d = 0;
    }
    registers[REG_RAX] = a, registers[REG_RBX] = b, registers[REG_RCX] = c, registers[REG_RDX] = d;
}

unsigned la_version(unsigned version) {
    struct sigaction action = {0};
    action.sa_sigaction = answer;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGTRAP, &action, NULL);
    return version;
}

unsigned la_objopen(struct link_map *map, Lmid_t space, uintptr_t *cookie) {
    char path[4096], line[4096 + 64], *list = getenv("PFL_CPUID_PLACES");
    if (!list || !realpath(map->l_name, path)) return 0;
    FILE *file = fopen(list, "r");
    if (!file) abort();
    while (fgets(line, sizeof line, file)) {
        char *rest;
        unsigned long place = strtoul(line, &rest, 16);
        line[strcspn(line, "\n")] = 0;
        if (strcmp(rest + 1, path)) continue;
        unsigned char *code = (unsigned char *)map->l_addr + place;
        uintptr_t page = (uintptr_t)code & ~4095ul;
        if (code[0] != 0x0f || code[1] != 0xa2) abort();
        if (mprotect((void *)page, 8192, PROT_READ | PROT_WRITE | PROT_EXEC)) abort();
        code[0] = 0xcc, code[1] = 0x90;
        mprotect((void *)page, 8192, PROT_READ | PROT_EXEC);
    }
    fclose(file);
    return 0;
}
"""


def places(library: Path) -> list[int]:
    """Addresses of ``cpuid`` in a library, of instructions and not of bytes that look so."""
    state = library.stat()
    key = hashlib.sha256(f"{library} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()[:16]
    kept = cache_dir() / "cpuid" / key
    if not kept.exists():
        found = subprocess.run(
            f"objdump -d --no-show-raw-insn '{library}' | grep -w cpuid || true",
            shell=True,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text("\n".join(re.findall(r"^\s*([0-9a-f]+):\s+cpuid", found, re.M)))
    return [int(place, 16) for place in kept.read_text().split()]


def libraries() -> list[Path]:
    """Files of the libraries, each once."""
    site = Path(sysconfig.get_path("platlib"))
    found = [path for pattern in _LIBRARIES for path in site.glob(pattern)]
    return sorted({path.resolve() for path in [*found, *map(Path, _OF_THE_SYSTEM)] if path.exists()})


def main() -> int:
    """Run the command, and give its status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what to run")
    command = parser.parse_args().command
    if not command:
        parser.error("give a command")
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        lines = [
            f"{place:x} {library}\n"
            for library, found in zip(libraries(), pool.map(places, libraries()), strict=True)
            for place in found
        ]
    with tempfile.TemporaryDirectory() as folder:
        source, built, listed = (Path(folder, name) for name in ("audit.c", "audit.so", "places"))
        source.write_text(_SOURCE)
        listed.write_text("".join(lines))
        subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", built, source], check=True)
        env = {**os.environ, "LD_AUDIT": str(built), "PFL_CPUID_PLACES": str(listed)}
        return subprocess.run(command, env=env, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
