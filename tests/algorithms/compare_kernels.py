"""Compare with the record, for every recorded plan: python tests/algorithms/compare_kernels.py [--against REVISION] [FORM ...]

For each plan whose machine code or launch arguments are not the recorded ones, and for each layer of the network that takes
another plan, a line says so. With a revision of this repository, the lines that differ follow: the plan is compiled there too.
Paths and names of modules play no part. Nothing is written; exit code 1 where something differs. LK_TRITON_TEST_TRITON names
the folder with the Triton that the digests are made with.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import unified_diff
from pathlib import Path
from typing import Any

from machine_code import Plan, digest, listings
from record_kernels import CODE, Records, digests_in, folder_of_triton

ROOT = Path(__file__).parents[2]
PROGRAM = Path("tests", "algorithms", "machine_code.py")
PARTS = ("machine code", "launch arguments")


def changed_plans(forms: Sequence[str], folder: str) -> list[dict[str, Any]]:
    """Say which recorded plans of these kernel forms are compiled or launched otherwise, and return these."""
    recorded = digests_in(json.loads(CODE.read_text()))
    rows = [row for form in forms or recorded for row in recorded[form]]
    found = []
    now = listings([plan for plan, _ in rows], ROOT / PROGRAM, folder)
    for number, ((plan, before), listing) in enumerate(zip(rows, now, strict=True), 1):
        if sys.stderr.isatty():
            print(f"{number} of {len(rows)} plans", end="\r", file=sys.stderr, flush=True)
        pairs = zip(PARTS, before.split(), digest(*listing).split(), strict=True)
        other = [part for part, was, is_now in pairs if was != is_now]
        if other:
            print(f"{Plan.from_json(plan)}: other {' and '.join(other)}", flush=True)
            found.append(plan)
    print(f"{len(found)} of {len(rows)} plans differ", file=sys.stderr)
    return found


def changed_answers(records: Records) -> int:
    """Say which layers of the network take another plan; returns how many."""
    count = 0
    for question, before in records.answers.items():
        now = question.answer()
        if now != before:
            print(f"{question}: takes {now.algorithm} {now.config}, took {before.algorithm} {before.config}")
            count += 1
    print(f"{count} of the {len(records.answers)} answers of the planner differ", file=sys.stderr)
    return count


@contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """A folder with the files of ``revision``."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.Popen(["git", "-C", str(ROOT), "archive", revision], stdout=subprocess.PIPE)
        subprocess.run(["tar", "-x", "-C", folder], stdin=archive.stdout, check=True)
        if archive.wait() != 0:
            sys.exit(f"git knows no revision {revision}")
        yield Path(folder)


def print_differences(plans: Sequence[dict[str, Any]], revision: str, folder: str) -> None:
    """Compile plans in both trees, and print the lines that differ."""
    with checkout(revision) as tree:
        before = listings(plans, tree / PROGRAM, folder, str(tree))
        now = listings(plans, ROOT / PROGRAM, folder, str(ROOT))
        for plan, old, new in zip(plans, before, now, strict=True):
            print(Plan.from_json(plan))
            for part, was, is_now in zip(PARTS, old, new, strict=True):
                print("\n".join(unified_diff(was, is_now, f"{part} of {revision}", f"{part} of now", lineterm="", n=1)))


def main() -> int:
    """Compare; 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="REVISION", help="print the lines that differ from this revision's")
    parser.add_argument("forms", nargs="*", metavar="FORM", help="kernel forms; default: all, and the planner's answers")
    options = parser.parse_args()
    folder = folder_of_triton()
    with tempfile.TemporaryDirectory() as no_cache:
        os.environ["LK_TRITON_CACHE_DIR"] = no_cache
        plans = changed_plans(options.forms, folder)
        answers = 0 if options.forms else changed_answers(Records.read())
    if options.against and plans:
        print_differences(plans, options.against, folder)
    return 1 if plans or answers else 0


if __name__ == "__main__":
    sys.exit(main())
