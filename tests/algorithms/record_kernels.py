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
from machine_code import TRITON, Plan, Question, compiles, digests, named, questions, recorded_plans

HASHES, CODE = (Path(__file__).with_name(name) for name in ("kernel_hashes.json", "machine_code.json"))
FOLDER = "LK_TRITON_TEST_TRITON"


@dataclass
class Records:
    """What is committed: form -> version and hash of its sources; form -> version, and the digest of every plan; and what the
    planner answers to the network."""

    hashes: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    plans: dict[str, dict[Plan, str]] = field(default_factory=dict)
    answers: dict[Question, Plan] = field(default_factory=dict)

    @classmethod
    def read(cls) -> Records:
        """From the files."""
        code = json.loads(CODE.read_text())
        plans = {form: {Plan.from_json(data): digest for data, digest in rows} for form, rows in digests_in(code).items()}
        answers = {}
        for gpu, problem, bank_format, packing, config in code["answers"]:
            plan = Plan.from_json({"arch": named(gpu).arch, "problem": code["problems"][problem], **code["configs"][config]})
            answers[Question(gpu, plan.problem, bank_format, packing)] = plan
        versions = {form: of_form["version"] for form, of_form in code["forms"].items()}
        return cls(json.loads(HASHES.read_text()), versions, plans, answers)

    def write(self) -> None:
        """Into the files: a form, a problem, a config, a plan, an answer a line; plans name problems and configs by number."""
        HASHES.write_text("{\n" + ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in self.hashes.items()) + "\n}\n")
        problems: list[Any] = []
        configs: list[Any] = []

        def numbers(plan: Plan) -> tuple[int, int]:
            config = plan.to_json()
            del config["arch"]
            return _number(config.pop("problem"), problems), _number(config, configs)

        forms = {
            form: [[plan.arch, *numbers(plan), digest] for plan, digest in plans.items()] for form, plans in self.plans.items()
        }
        answers = []
        for question, plan in self.answers.items():
            problem, config = numbers(plan)
            answers.append([question.gpu, problem, question.bank_format, question.packing, config])
        blocks = [f'  "{form}": {{"version": {self.versions[form]}, "plans": {_lines(rows)}}}' for form, rows in forms.items()]
        CODE.write_text(
            f'{{\n "triton": "{TRITON}",\n "problems": {_lines(problems)},\n "configs": {_lines(configs)},\n "forms": {{\n'
            + ",\n".join(blocks)
            + f'\n }},\n "answers": {_lines(answers)}\n}}\n'
        )


def digests_in(code: dict[str, Any]) -> dict[str, list[tuple[dict[str, Any], str]]]:
    """Form -> each plan as JSON, and its digest, in the content of ``CODE``."""
    problems, configs = code["problems"], code["configs"]
    return {
        form: [({"arch": a, "problem": problems[p], **configs[c]}, digest) for a, p, c, digest in of_form["plans"]]
        for form, of_form in code["forms"].items()
    }


def _number(value: Any, of: list[Any]) -> int:
    """The place of ``value`` in a list, at whose end it is put where it is not there."""
    if value not in of:
        of.append(value)
    return of.index(value)


def _lines(rows: list[Any]) -> str:
    """A JSON list, a row a line."""
    return "[\n  " + ",\n  ".join(map(json.dumps, rows)) + "\n ]"


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


def add_network(records: Records, compiled: Callable[[Sequence[Plan]], list[str]]) -> None:
    """Record what the network takes, and the digests of plans among these that have none."""
    records.answers = {question: question.answer() for question in questions()}
    new = [p for p in dict.fromkeys(records.answers.values()) if compiles(p) and p not in records.plans[p.form]]
    for plan, found in zip(new, compiled(new), strict=True):
        records.plans[plan.form][plan] = found


def folder_of_triton() -> str:
    """Where the Triton lies that digests are made with."""
    if "TRITON_INTERPRET" in os.environ:
        sys.exit("kernels are interpreted in this process: unset TRITON_INTERPRET to compile them")
    folder = os.environ.get(FOLDER)
    if folder is None:
        sys.exit(f"{FOLDER} names no folder with Triton {TRITON}: pip install --no-deps --target FOLDER triton=={TRITON}")
    return folder


def main() -> int:
    """Update the files; 1 where a version has to be raised first."""
    folder = folder_of_triton()
    records = Records.read() if CODE.exists() else Records()
    with tempfile.TemporaryDirectory() as no_cache:
        os.environ["LK_TRITON_CACHE_DIR"] = no_cache
        refused = update(records, recorded_plans, lambda plans: digests(plans, folder), Sources())
        if not refused:
            add_network(records, lambda plans: digests(plans, folder))
    records.write()
    print("\n".join(refused) or f"{HASHES.name} and {CODE.name} are up to date")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
