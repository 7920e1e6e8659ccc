"""Compile on a machine without a GPU what a visit to one will run, so that the visit need not.

    python -m lk_triton.bench.prewarm --out prewarmed.tar.gz                      here: on the stub driver, which takes a while
    python -m lk_triton.bench.prewarm --unpack prewarmed.tar.gz --state DIR       there: where gpu_visit.sh --state DIR looks

Triton takes a compiled kernel from its cache where its own key, ptxas and the kernel's source are the same, so this has to run
with the Python and the Triton of the visit, wherever they lie; where anything differs, nothing is lost but the time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from lk_triton.files import why_not_written

from . import machine, stub, usage

SCRIPT = Path(__file__).with_name("gpu_visit.sh")
KEPT = (".cubin", ".json", ".so")
"""Of what Triton's cache holds of a kernel, what it asks for when it finds it again."""

GROUP = "__grp__"
"""How the files begin that name, by absolute paths, those of one kernel."""

FACTS = "prewarmed.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``run``."""
    parser.description = __doc__
    parser.add_argument("--out", type=Path, metavar="FILE.tar.gz", help="compile, and write this archive")
    parser.add_argument("--parts", nargs="+", choices=("A", "B", "C"), default=["A", "B", "C"], help="default: all")
    parser.add_argument("--unpack", type=Path, metavar="FILE.tar.gz", help="unpack an archive")
    parser.add_argument("--state", type=Path, metavar="DIR", help="as of gpu_visit.sh; without it a temporary folder compiles")


def run(options: argparse.Namespace) -> int:
    """Compile and pack, or unpack. Exit code 1 where a part of the visit failed: what it compiled is packed all the same."""
    if (options.out is None) == (options.unpack is None):
        raise usage.UsageError("name an archive to write (--out) or to unpack (--unpack)")
    if options.unpack is not None:
        if options.state is None:
            raise usage.UsageError("--unpack needs --state: the folder that gpu_visit.sh is given")
        count = unpack(options.unpack, options.state / "triton")
        print(f"{count} files in {options.state / 'triton'}; {agreement(options.unpack)}")
        return 0
    reason = stub.missing() or why_not_written(options.out)
    if reason is not None:
        raise usage.UsageError(reason)
    with tempfile.TemporaryDirectory() as folder:
        state = options.state or Path(folder)
        failed = [part for part in options.parts if compile_part(part, state)]
        count = pack(state / "triton", options.out)
    print(f"{options.out}: {count} files, {options.out.stat().st_size / 1e6:.1f} MB; for {json.dumps(machine.software())}")
    if failed:
        print(f"failed: {', '.join(failed)}; see {state}/out-*/summary.txt", file=sys.stderr)
    return int(bool(failed))


def compile_part(part: str, state: Path) -> int:
    """Run a part of the visit on the stub driver, without a clock; returns its exit status."""
    environment = os.environ | {"PYTHON": sys.executable}
    command = ["bash", str(SCRIPT), "--part", part, "--state", str(state), "--as", "compile"]
    return subprocess.run(command, env=environment, stdout=sys.stderr, check=False).returncode


def pack(cache: Path, archive: Path) -> int:
    """Write what another Triton needs of ``cache``; returns how many files."""
    files = sorted(file for file in cache.rglob("*") if file.suffix in KEPT)
    with tarfile.open(archive, "w:gz") as tar:
        facts = json.dumps(machine.software() | {"cache": str(cache)}).encode()
        info = tarfile.TarInfo(FACTS)
        info.size = len(facts)
        tar.addfile(info, BytesIO(facts))
        for file in files:
            tar.add(file, file.relative_to(cache).as_posix())
    return len(files)


def unpack(archive: Path, cache: Path) -> int:
    """Unpack into ``cache``, whose path the files that name others then hold; returns how many files there are.

    Raises:
        UsageError: it is no archive of this program.
    """
    cache = cache.absolute()
    before = Path(facts_of(archive)["cache"])
    cache.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as tar:
        tar.extractall(cache, members=_plain(tar), filter="data")
        names = [member.name for member in tar.getmembers()]
    for file in (cache / name for name in names if Path(name).name.startswith(GROUP)):
        group = json.loads(file.read_text())
        there = {name: path for name, path in group["child_paths"].items() if name.endswith(KEPT)}
        paths = {name: str(cache / Path(path).relative_to(before)) for name, path in there.items()}
        file.write_text(json.dumps(group | {"child_paths": paths}))
    return len(names) - 1


def _plain(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    return (member for member in tar.getmembers() if member.isfile() and member.name != FACTS)


def facts_of(archive: Path) -> dict[str, str]:
    """With which software an archive was made.

    Raises:
        UsageError: it is no archive of this program.
    """
    try:
        with tarfile.open(archive) as tar:
            stream = tar.extractfile(FACTS)
            assert stream is not None
            return json.load(stream)
    except (OSError, KeyError, ValueError, AssertionError, tarfile.TarError) as error:
        raise usage.UsageError(f"{archive} is no archive of bench prewarm: {error}") from None


def agreement(archive: Path) -> str:
    """Whether Triton here will use what an archive holds."""
    made, here = facts_of(archive), machine.software()
    keys = [name for name in ("triton_key", "ptxas") if made.get(name) != here[name]]
    differing = [f"{name} {made.get(name)} there, {here[name]} here" for name in keys]
    return f"of no use here: {'; '.join(differing)}" if differing else "Triton here is the one that compiled them"


main = usage.as_program("prewarm", add_arguments, run)

if __name__ == "__main__":
    raise SystemExit(main())
