"""What the pages list is what the code has: algorithms, commands, options, environment variables, the protocol."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lk_triton import gpu as gpus
from lk_triton.algorithms import base, registry
from lk_triton.bench.cases import STAGES, layer
from lk_triton.bench.providers import OURS, PROVIDERS
from lk_triton.cli.main import BENCH, build_parser
from lk_triton.planning.plan import plan

ROOT = Path(__file__).parent.parent
CLI, KERNELS, BENCHMARKS = (ROOT / "docs" / f"{name}.md" for name in ("cli", "kernels", "benchmarks"))
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
VARIABLE = re.compile(r"\bLK_TRITON_[A-Z_]+\b")


def first_cells(page: Path) -> str:
    """The first column of all tables of a page."""
    return "\n".join(re.findall(r"^\| ([^|]*) \|", page.read_text(), re.MULTILINE))


def commands(parser: argparse.ArgumentParser, name: str = "lk-triton") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every subcommand, those of ``bench`` too."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, child in action.choices.items():
                yield f"{name} {word}", child
                yield from commands(child, f"{name} {word}")


COMMANDS = dict(commands(build_parser()))


def test_every_algorithm_has_a_line() -> None:
    plan(layer(1, 8, 8, 8, 3), gpus.for_arch("h100"))  # those of chains are registered where plans are made
    lines = first_cells(KERNELS)
    assert [name for name in registry.ALGORITHMS if f"`{name}`" not in lines] == []


def test_every_environment_variable_has_a_line_and_exists() -> None:
    sources = [file for folder in ("lk_triton", "bench", "models") for file in (ROOT / folder).rglob("*.py")]
    code = "\n".join(file.read_text() for file in (*sources, ROOT / "setup.sh", *(ROOT / "bench").glob("*.sh")))
    table = CLI.read_text().split("## Environment variables")[1]
    read, listed = set(VARIABLE.findall(code)), set(VARIABLE.findall(table))
    assert read == listed


def test_pages_name_no_variable_that_does_not_exist() -> None:
    known = set(VARIABLE.findall(CLI.read_text())) | {"LK_TRITON_TEST_TRITON"}
    assert {name for page in PAGES for name in VARIABLE.findall(page.read_text())} <= known


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_option_is_on_a_page(command: str) -> None:
    pages = "\n".join(page.read_text() for page in PAGES)
    word = command.rsplit(" ", 1)[1]
    assert re.search(rf"\b{word}\b", CLI.read_text())
    options = [o for action in COMMANDS[command]._actions for o in action.option_strings if o.startswith("--")]
    assert [option for option in options if option != "--help" and option not in pages] == []


def test_every_benchmark_has_a_line() -> None:
    table = CLI.read_text().split("## lk-triton bench")[1]
    rows = re.findall(r"^\| `([a-z-]+)", table, re.MULTILINE)
    assert [name for name in BENCH if name not in rows] == []


def test_every_peer_has_a_line() -> None:
    lines = first_cells(BENCHMARKS)
    assert [name for name in PROVIDERS if not name.startswith(OURS) and f"`{name}`" not in lines] == []


def test_the_protocol_has_a_line_each() -> None:
    lines = first_cells(ROOT / "CONTRIBUTING.md")
    methods = [name for name, value in vars(base.Algorithm).items() if callable(value) and not name.startswith("_")]
    assert [name for name in methods if f"{name}(" not in lines] == []


def test_useful_shares_are_those_of_the_plans() -> None:
    """``issued_macs`` is what the interpreter records (tests/algorithms/test_toeplitz.py)."""
    found = {}
    for c, size, k in STAGES:
        problem = replace(layer(64, c, size, size, k), layout="channel_major")
        chosen = plan(problem, gpus.for_arch("h100"), "toeplitz")
        share = problem.useful_macs / registry.get("toeplitz").issued_macs(problem, chosen.config)
        assert share <= 1
        found[f"{k}x{k} on {size}x{size}"] = f"{share:.0%}".replace("%", " %")
    rows = dict(re.findall(r"^\| (\d+x\d+ on \d+x\d+) \| (\d+ %) \|$", KERNELS.read_text(), re.MULTILINE))
    assert rows == found


def test_no_page_counts_in_words_what_grows() -> None:
    """A page said "four algorithms" of five, and "both algorithms" of seven."""
    for page in PAGES:
        assert not re.search(r"\b(both|two|three|four|five|six|seven|\d+) algorithms\b", page.read_text(), re.IGNORECASE), page
