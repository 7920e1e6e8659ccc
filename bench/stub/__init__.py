"""A GPU that is not there: what a visit to a GPU runs, without one, as far as the launches.

``driver.c`` is a CUDA driver that only records launches and refuses what a driver refuses. ``pretend.py`` puts an H100 on top
of it into this process, on which tensors have addresses and no values: Triton's own JIT, launcher and tensor-map encoding run
through this library's own host code, and no kernel runs.

    python -m lk_triton.bench.stub lk_triton.bench.network --batch 1 --forms lk_triton
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from importlib.util import find_spec
from pathlib import Path

SOURCE = Path(__file__).with_name("driver.c")
LIBRARY = "libcuda.so.1"


def missing() -> str | None:
    """What is missing to build the driver, and Triton's launcher on top of it; None where nothing is."""
    if find_spec("triton") is None:
        return "Triton is not installed"
    if compiler() is None:
        return "no C compiler: apt-get install gcc"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "no Python.h: apt-get install python3-dev"
    return None


def compiler() -> str | None:
    """The C compiler, as Triton looks for it."""
    return os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")


def build(folder: Path) -> Path:
    """Compile the driver into ``folder``; returns the library.

    Raises:
        RuntimeError: something is missing, or the compiler failed.
    """
    command = compiler()
    if (reason := missing()) is not None or command is None:
        raise RuntimeError(f"the stub driver cannot be built: {reason}")
    found = find_spec("triton.backends.nvidia")
    assert found is not None
    assert found.origin is not None
    library = folder / LIBRARY
    # by its soname a library that is loaded already is found, wherever it lies
    options = ["-std=c11", "-O1", "-shared", "-fPIC", f"-Wl,-soname,{LIBRARY}", f"-I{Path(found.origin).parent / 'include'}"]
    result = subprocess.run([command, *options, str(SOURCE), "-o", str(library)], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"the stub driver cannot be built: {result.stderr}")
    return library
