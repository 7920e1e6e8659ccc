"""Machine code as text: find a kernel's main loop and count what it holds.

Two languages: SASS as nvdisasm prints it (NVIDIA), and the amdgcn assembly that LLVM writes (AMD).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Language:
    """How instructions look.

    Attributes:
        instruction: a line's predicate (group 1, may be empty) and instruction (group 2).
        label: a line that defines the label of group 1.
        branch: a branch to the label of group 1.
        end: an instruction after which the next one runs only if it is predicated.
        mma: a matrix instruction.
        load: a load from global memory.
        to_shared: of those loads, the ones that go to shared memory without passing through registers.
        widths: pattern of a load -> bytes per thread; the first that matches counts, 4 where none does.
    """

    instruction: re.Pattern[str]
    label: re.Pattern[str]
    branch: re.Pattern[str]
    end: re.Pattern[str]
    mma: re.Pattern[str]
    load: re.Pattern[str]
    to_shared: re.Pattern[str]
    widths: tuple[tuple[re.Pattern[str], int], ...]


def _patterns(**widths: int) -> tuple[tuple[re.Pattern[str], int], ...]:
    return tuple((re.compile(rf"[._]{name}\b"), width) for name, width in widths.items())


SASS = Language(
    instruction=re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(@!?U?P\w+\s+)?(.*?)\s*;"),
    label=re.compile(r"^(\.L_x_\d+):"),
    branch=re.compile(r"^BRA\b.*`\((\.L_x_\d+)\)"),
    end=re.compile(r"^(BRA `|EXIT\b)"),
    mma=re.compile(r"^(HGMMA|QGMMA|HMMA|IMMA|DMMA|QMMA|OMMA|UTC\w*MMA)\b"),
    load=re.compile(r"^(LDG|LDGSTS)\."),
    to_shared=re.compile(r"^LDGSTS\b"),
    widths=_patterns(**{"128": 16, "64": 8, "[US]16": 2, "[US]8": 1}),
)
"""``BRA.U UP0, ...`` depends on its operand; only ``BRA`` and its target alone always jumps."""

AMDGCN = Language(
    instruction=re.compile(r"^\t()([a-z]\w*(?:[ \t][^;]*?)?)\s*(?:;.*)?$"),
    label=re.compile(r"^(\.LBB\d+_\d+):"),
    branch=re.compile(r"^s_c?branch\w*\s+(\.LBB\d+_\d+)"),
    end=re.compile(r"^(s_branch|s_endpgm)\b"),
    mma=re.compile(r"^v_(mfma|smfmac|wmma|swmmac)_"),
    load=re.compile(r"^(global|buffer)_load_"),
    to_shared=re.compile(r"^(global_load_lds_|buffer_load_.*\blds\b)"),
    widths=_patterns(dwordx4=16, dwordx3=12, dwordx2=8, dword=4, **{"[us]?short(_d16)?(_hi)?": 2, "[us]byte(_d16)?(_hi)?": 1}),
)


class Instruction(NamedTuple):
    """One line: its text without the predicate, the label that it may jump to, and whether the next one may follow it."""

    text: str
    target: str | None
    falls_through: bool


@dataclass(frozen=True)
class Mix:
    """What a stretch of code holds.

    Attributes:
        instructions: how many there are.
        mma: matrix instructions.
        mma_kind: the commonest of them as written, such as ``HGMMA.64x256x16.F32``; empty without any.
        loads: bytes per thread -> loads of global memory (straight to shared memory, to registers).
    """

    instructions: int
    mma: int
    mma_kind: str
    loads: dict[int, tuple[int, int]]

    @property
    def load_counts(self) -> dict[int, int]:
        """Bytes per thread -> loads of global memory of either kind, widest first."""
        return {width: sum(self.loads[width]) for width in sorted(self.loads, reverse=True)}


def mix(texts: Sequence[str], language: Language = SASS) -> Mix:
    """Count matrix instructions and global loads."""
    kinds = Counter(text.split()[0] for text in texts if language.mma.match(text))
    loads: dict[int, tuple[int, int]] = {}
    for text in texts:
        if language.load.match(text):
            width = _width(text, language)
            to_shared, to_registers = loads.get(width, (0, 0))
            straight = bool(language.to_shared.match(text))
            loads[width] = (to_shared + straight, to_registers + (not straight))
    return Mix(len(texts), kinds.total(), kinds.most_common(1)[0][0] if kinds else "", loads)


def main_loop(listing: str, language: Language = SASS) -> list[str]:
    """Instructions of the innermost loop that holds a matrix instruction; the whole kernel where no loop does."""
    program, labels = parse(listing, language)
    matrix = {i for i, instruction in enumerate(program) if language.mma.match(instruction.text)}
    holding = [loop for loop in _loops(program, labels) if loop & matrix]
    chosen = sorted(min(holding, key=len)) if holding else range(len(program))
    return [program[i].text for i in chosen]


def _width(text: str, language: Language) -> int:
    opcode = text.split()[0]
    return next((width for pattern, width in language.widths if pattern.search(opcode)), 4)


def parse(listing: str, language: Language) -> tuple[list[Instruction], dict[str, int]]:
    """The instructions in order, and label -> index of the instruction after it."""
    program: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        if label := language.label.match(line):
            labels[label[1]] = len(program)
        elif found := language.instruction.match(line):
            branch = language.branch.match(found[2])
            falls_through = bool(found[1]) or not language.end.match(found[2])
            program.append(Instruction(found[2], branch[1] if branch else None, falls_through))
    return program, labels


def _loops(program: Sequence[Instruction], labels: dict[str, int]) -> Iterable[set[int]]:
    """Natural loops, each as the indices of its instructions.

    A step from an instruction to a header makes one: the header, and what leads to that step without passing the header.
    Where the kernel's entry leads there too, the step only enters a loop, or returns from code that was moved out of the way.
    """
    before: dict[int, list[int]] = {i: [] for i in range(len(program) + 1)}
    for i, instruction in enumerate(program):
        if instruction.falls_through:
            before[i + 1].append(i)
        if instruction.target in labels:
            before[labels[instruction.target]].append(i)
    loops: dict[int, set[int]] = {}
    for header in set(labels.values()):
        for last in before[header]:
            loop, waiting = {header}, [last]
            while waiting:
                i = waiting.pop()
                if i not in loop:
                    loop.add(i)
                    waiting += before[i]
            if header == 0 or 0 not in loop:
                loops.setdefault(header, set()).update(loop)
    return loops.values()
