"""Whether a register that a wgmma in flight still reads is written to: ``python -m tests.algorithms.wgmma_operands``.

A wgmma reads A from shared memory or from registers, where A must stay until a wait covers the instruction. Compilers have
broken that rule (triton#9433, triton#11781). The program reads JSON lines, an algorithm and a problem each, and compiles what
an H100 would run. It prints a line each: how many wgmma have A in registers, and the faults. TRITON_INTERPRET must be unset.
"""

from __future__ import annotations

import json
import re
import sys

from lk_triton import gpu as gpus
from lk_triton.planning.entry import problem_from_json
from lk_triton.planning.plan import plan
from lk_triton.tools import inspector
from lk_triton.tools.disassembly import SASS, Instruction, parse

PRODUCT = re.compile(r"HGMMA\.\d+x(\d+)x\d+\S* R(\d+), (?:R(\d+)|gdesc)")
"""Accumulators N / 2 from the first register; A in four, or behind a descriptor."""

WAIT = re.compile(r"WARPGROUP\.DEPBAR\.LE gsb0, (0x[0-9a-f]+|\d+)")
"""Until so many of the groups that ``gsb0`` closed are in flight."""

WRITE = re.compile(r"(\S+) (?:U?P\w+, )?R(\d+)\b")
"""The first operand, behind a predicate that is written too."""

NO_WRITE = ("BAR", "BSYNC", "BRX", "RET", "CALL", "WARPSYNC", "NANOSLEEP", "R2P")
"""Whose first register is read."""

MOST_GROUPS = 8
"""In flight on one path; no kernel here has more than its stages."""


def faults(listing: str) -> tuple[int, list[str]]:
    """How many wgmma of ``listing`` (nvdisasm's text) read A from registers, and every instruction that writes to a register
    that one in flight still reads, on some path.

    Raises:
        ValueError: more groups are in flight than are followed.
    """
    program, labels = parse(listing, SASS)
    found: set[int] = set()
    seen: set[tuple[int, tuple[frozenset[int], ...]]] = set()
    waiting: list[tuple[int, tuple[frozenset[int], ...]]] = [(0, (frozenset(),))]
    while waiting:
        state = i, groups = waiting.pop()  # registers that are read by each group in flight, the last one not yet closed
        if i >= len(program) or state in seen:
            continue
        seen.add(state)
        instruction = program[i]
        if written(instruction) & frozenset().union(*groups):
            found.add(i)
        groups = after(instruction, groups)
        if len(groups) > MOST_GROUPS:
            raise ValueError(f"{len(groups)} groups of wgmma in flight at {instruction.text!r}")
        if instruction.falls_through:
            waiting.append((i + 1, groups))
        if instruction.target in labels:
            waiting.append((labels[instruction.target], groups))
    reading = sum(bool(operand(instruction)) for instruction in program)
    return reading, [program[i].text for i in sorted(found)]


def after(instruction: Instruction, groups: tuple[frozenset[int], ...]) -> tuple[frozenset[int], ...]:
    """The groups in flight behind ``instruction``."""
    if PRODUCT.match(instruction.text):
        groups = (*groups[:-1], groups[-1] | operand(instruction))
        return (*groups, frozenset()) if "gsb0" in instruction.text else groups
    if wait := WAIT.match(instruction.text):
        closed = groups[:-1]
        return (*closed[max(len(closed) - int(wait[1], 0), 0) :], groups[-1])
    return groups


def operand(instruction: Instruction) -> frozenset[int]:
    """The registers of A."""
    product = PRODUCT.match(instruction.text)
    return frozenset(range(int(product[3]), int(product[3]) + 4)) if product and product[3] else frozenset()


def written(instruction: Instruction) -> frozenset[int]:
    """The registers that ``instruction`` writes to, at least."""
    if product := PRODUCT.match(instruction.text):
        return frozenset(range(int(product[2]), int(product[2]) + int(product[1]) // 2))
    write = WRITE.match(instruction.text)
    if write is None or write[1].startswith(NO_WRITE):
        return frozenset()
    opcode, first = write[1], int(write[2])
    if ".128" in opcode or opcode.endswith("M88.4") or opcode.startswith(("HMMA", "IMMA")):
        count = 4
    elif ".64" in opcode or "WIDE" in opcode or opcode.endswith("M88.2") or opcode in ("CS2R", "DADD", "DFMA", "DMUL"):
        count = 2
    else:
        count = 1
    return frozenset(range(first, first + count))


if __name__ == "__main__":
    h100 = gpus.for_arch("sm_90")
    for line in sys.stdin:
        algorithm, fields = json.loads(line)
        problem = problem_from_json(fields)
        launch = inspector.meta_launch(problem, algorithm, plan(problem, h100, algorithm).config)
        print(json.dumps(faults(inspector.compile_launch(launch, h100.arch).disassembly)), flush=True)
