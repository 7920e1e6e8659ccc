"""The table of commands: each one parses, explains itself and refuses in one line, and only what is called is imported."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from command_lines import error_of

import lk_triton
from lk_triton.cli import build_parser, main
from lk_triton.cli.main import COMMANDS
from lk_triton.cli.options import DTYPES, dtype, positive

ROOT = Path(__file__).resolve().parent.parent.parent


def leaves(commands: Mapping[str, Any], *before: str) -> Iterator[tuple[str, ...]]:
    """The words of every command of a table and of the tables in it."""
    for name, (module, _) in commands.items():
        if isinstance(module, Mapping):
            yield from leaves(module, *before, name)
        else:
            yield (*before, name)


WORDS = list(leaves(COMMANDS))


def parser_of(words: tuple[str, ...], parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    for word in words:
        (choices,) = (a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction))
        parser = choices[word]
    return parser


def usage(words: tuple[str, ...], of: tuple[str, ...] | None) -> str:
    """The help of the command ``words`` in the parser that was built for the command ``of``, or for all."""
    return parser_of(words, build_parser(of)).format_help()


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_a_command_line_declares_the_arguments_of_its_command_only(words: tuple[str, ...]) -> None:
    assert usage(words, of=words) == usage(words, of=None)
    bare = parser_of(WORDS[0] if words != WORDS[0] else WORDS[1], build_parser(words))
    assert [action.dest for action in bare._actions] == ["help"]


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_help(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main([*words, "--help"])
    out, err = capsys.readouterr()
    assert out.startswith(f"usage: lk-triton {' '.join(words)} ")
    assert err == ""


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_values_that_are_none_are_refused_in_one_line(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """The dtypes and positive numbers of every command."""
    reason = {positive: "expected a positive integer, got 'int8'", dtype: f"expected one of {', '.join(DTYPES)}"}
    for action in parser_of(words, build_parser())._actions:
        if action.type in reason:
            error = error_of(capsys, *words, action.option_strings[0], "int8")
            assert f"argument {action.option_strings[0]}: {reason[action.type]}" in error


@pytest.mark.parametrize("words", [(), ("rnu",), ("bench",), ("bench", "covn"), ("study",), ("run", "--fast")], ids=" ".join)
def test_what_is_no_command_is_refused_in_one_line(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert "--help)" in error_of(capsys, *words)


def python(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_only_what_is_called_is_imported() -> None:
    code = (
        "import contextlib, io, sys\n"
        "from lk_triton.cli import main\n"
        "for words in ([], ['cache'], ['bench', 'plot']):\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "        main([*words, '--help'])\n"
        "    print(*(m for m in sys.modules if m.startswith(('lk_triton.cli.', 'lk_triton.models', 'lk_triton.bench.'))))"
    )
    bare, cache, plot = (set(line.split()) for line in python(code).splitlines())
    assert bare == {"lk_triton.cli.main", "lk_triton.cli.options"}
    assert cache - bare == {"lk_triton.cli.cache", "lk_triton.cli.output"}
    assert "lk_triton.bench.plot" in plot
    assert "lk_triton.bench.conv" not in plot


def test_version_and_module() -> None:
    command = [sys.executable, "-m", "lk_triton.cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == f"lk-triton {lk_triton.__version__}\n"
