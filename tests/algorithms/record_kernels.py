"""Record the kernels as they are, after a kernel, its launch or its packing changed: python tests/algorithms/record_kernels.py

A form whose version was raised is recorded with that version: the hash of its sources, and digests of the machine code and
launch arguments of its plans. Under the version that it had, the new hash is recorded only if all those digests are unchanged.
LK_TRITON_TEST_TRITON names the folder with the Triton that the digests are made with.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kernel_sources import Sources, forms
from machine_code import TRITON, Plan, digests, recorded_plans

HASHES, CODE = (Path(__file__).with_name(name) for name in ("kernel_hashes.json", "machine_code.json"))
FOLDER = "LK_TRITON_TEST_TRITON"


@dataclass
class Records:
    """What is committed: form -> version and hash of its sources; form -> version, and the digest of every plan."""

    hashes: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    plans: dict[str, dict[Plan, str]] = field(default_factory=dict)

    @classmethod
    def read(cls) -> Records:
        """From the files."""
        code = json.loads(CODE.read_text())
        plans = {
            form: {Plan.from_json([arch, code["problems"][i], *rest]): digest for arch, i, *rest, digest in of_form["plans"]}
            for form, of_form in code["forms"].items()
        }
        return cls(json.loads(HASHES.read_text()), {form: f["version"] for form, f in code["forms"].items()}, plans)

    def write(self) -> None:
        """Into the files: a form, a problem, a plan a line."""
        HASHES.write_text("{\n" + ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in self.hashes.items()) + "\n}\n")
        problems: list[Any] = []
        blocks = []
        for form, plans in self.plans.items():
            rows = []
            for plan, digest in plans.items():
                arch, problem, *rest = plan.to_json()
                if problem not in problems:
                    problems.append(problem)
                rows.append(json.dumps([arch, problems.index(problem), *rest, digest]))
            lines = ",\n   ".join(rows)
            blocks.append(f'  "{form}": {{"version": {self.versions[form]}, "plans": [\n   {lines}\n  ]}}')
        header = f'{{\n "triton": "{TRITON}",\n "problems": [\n  ' + ",\n  ".join(map(json.dumps, problems))
        CODE.write_text(header + '\n ],\n "forms": {\n' + ",\n".join(blocks) + "\n }\n}\n")


def update(
    records: Records, plans: Callable[[], Sequence[Plan]], compiled: Callable[[Sequence[Plan]], list[str]], sources: Sources
) -> list[str]:
    """Bring ``records`` up to date, as far as that may be; returns what may not be recorded, and why.

    ``plans`` chooses the plans to record, ``compiled`` makes their digests.
    """
    refused = []
    for form, algorithm in forms().items():
        version, found = algorithm.versions[form], sources.hash(form)
        now = {"version": version, "hash": found}
        recorded = records.versions.get(form, 0)
        if records.hashes.get(form) == now and recorded == version:
            continue
        if version < recorded:
            refused.append(f"{form}: its version is {version}, but {recorded} is recorded: versions only rise")
            continue
        if version > recorded:
            chosen = [p for p in plans() if p.form == form]
            records.plans[form] = dict(zip(chosen, compiled(chosen), strict=True))
        else:
            before = records.plans[form]
            changed = [p for p, d in zip(before, compiled(list(before)), strict=True) if d != before[p]]
            if changed:
                refused.append(
                    f"{form}: {len(changed)} of its {len(before)} plans compile or launch otherwise, such as {changed[0]}: "
                    f'raise versions["{form}"] to {version + 1} in its host file, and run this again'
                )
                continue
        records.versions[form], records.hashes[form] = version, now
    return refused


def main() -> int:
    """Update the files; 1 where a version has to be raised first."""
    if "TRITON_INTERPRET" in os.environ:
        sys.exit("kernels are interpreted in this process: unset TRITON_INTERPRET to compile them")
    folder = os.environ.get(FOLDER)
    if folder is None:
        sys.exit(f"{FOLDER} names no folder with Triton {TRITON}: pip install --no-deps --target FOLDER triton=={TRITON}")
    records = Records.read() if CODE.exists() else Records()
    with tempfile.TemporaryDirectory() as no_cache:
        os.environ["LK_TRITON_CACHE_DIR"] = no_cache
        refused = update(records, recorded_plans, lambda plans: digests(plans, folder), Sources())
    records.write()
    print("\n".join(refused) or f"{HASHES.name} and {CODE.name} are up to date")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
