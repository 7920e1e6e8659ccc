"""What users name: the public names with their parameters, commands and options, environment variables, op schemas, and every
module and name that the pages show."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import inspect
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lk_triton.cli import build_parser

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/*.md"))
PACKAGES = ("lk_triton", "lk_triton.nn", "lk_triton.models")
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DOTTED = re.compile(r"\blk_triton(?:\.[A-Za-z_]\w*)+")
VARIABLE = re.compile(r"\bLK_TRITON_[A-Z_]+\b")

VALUES = ("3", "x", "float16", "3,5", "1,8,16,16", "x.csv", "x.png")
"""What an option or argument may take; an example of each uses the first that its parser accepts."""

Parameter = tuple[str, str, str | None]
"""Name, kind, and the default as text."""


def everything() -> dict[str, Any]:
    """As it is now, in JSON's types."""
    return {
        "names": names(), "shown": shown(), "commands": commands(), "variables": variables(), "ops": ops(),
    }  # fmt: skip


def names() -> dict[str, Any]:
    """Public name -> the parameters of a call (null of what is called by nobody)."""
    found: dict[str, list[Parameter] | None] = {}
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            value = getattr(module, name)
            found[f"{package}.{name}"] = parameters(value)
            if isinstance(value, type):
                found |= {f"{package}.{name}.{member}": of for member, of in members(value).items()}
    return found


def members(cls: type[Any]) -> dict[str, list[Parameter] | None]:
    """Public methods, properties and fields that classes of this library give ``cls``."""
    own = {n: v for c in reversed(cls.__mro__) if c.__module__.startswith("lk_triton") for n, v in vars(c).items()}
    found = {name: parameters(getattr(cls, name)) for name in own if not name.startswith("_")}
    if dataclasses.is_dataclass(cls):
        found |= {field.name: None for field in dataclasses.fields(cls)}
    return found


def parameters(value: Any) -> list[Parameter] | None:
    """Of a function or class."""
    if not callable(value):
        return None
    return [(p.name, p.kind.name, None if p.default is p.empty else repr(p.default))
            for p in inspect.signature(value).parameters.values()]  # fmt: skip


def shown() -> list[str]:
    """Modules and names, dotted, that the pages import, run with ``python -m``, or name."""
    found: set[str] = set()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        found |= {name for name in DOTTED.findall(text) if exists(name)}
        for language, block in BLOCK.findall(text):
            if language == "python":
                for node in ast.walk(ast.parse(block)):
                    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lk_triton":
                        found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return sorted(found)


def find(name: str) -> Any:
    """What a dotted name stands for; a module that warns of its new place is one.

    Raises:
        ImportError: a module that is named, or one that it imports, does not exist.
        AttributeError: the module has no such name.
    """
    parts = name.split(".")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = importlib.import_module(parts[0])
        for i, part in enumerate(parts[1:], 2):
            if inspect.ismodule(found) and not hasattr(found, part):
                importlib.import_module(".".join(parts[:i]))
            found = getattr(found, part)
    return found


def exists(name: str) -> bool:
    """Whether ``find`` finds it."""
    try:
        find(name)
    except (ImportError, AttributeError):
        return False
    return True


def ops() -> list[str]:
    """The schemas of all registered ops."""
    registered = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("lk_triton::")]
    return sorted(str(torch._C._get_schema(name, "")) for name in registered)


def variables() -> list[str]:
    """The environment variables that code reads."""
    folders = ("lk_triton", "bench", "models")
    files = [file for folder in folders for pattern in ("*.py", "*.sh") for file in (ROOT / folder).rglob(pattern)]
    code = "\n".join(file.read_text(encoding="utf-8") for file in [*files, ROOT / "setup.sh"])
    return sorted(set(VARIABLE.findall(code)))


def commands() -> dict[str, list[dict[str, Any]]]:
    """Command -> for every option in each of its spellings, and every argument and choice, a command line that has it."""
    return dict(_commands(build_parser(), []))


def _commands(parser: argparse.ArgumentParser, words: list[str]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    children = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    for action in children:
        for word, child in action.choices.items():
            yield from _commands(child, [*words, word])
    if not children:
        actions = [a for a in parser._actions if not isinstance(a, argparse._HelpAction)]
        yield " ".join(words), [row for action in actions for row in _lines(parser, action, words)]


def _lines(parser: argparse.ArgumentParser, action: argparse.Action, words: list[str]) -> Iterator[dict[str, Any]]:
    """With the option's spelling (or the argument's name), and the name and value that its absence has."""
    needed = [w for other, given in _needed(parser).items() if not _excludes(parser, action, other) for w in given]
    for given in _given(action):
        option = given[0] if action.option_strings else action.dest
        # an option of several values would swallow an argument behind it, and an argument of several an option's
        line = [*words, *needed, *given] if action.option_strings else [*words, *given, *needed]
        yield {"option": option, "line": line, "name": action.dest, "default": str(action.default)}


def _needed(parser: argparse.ArgumentParser) -> dict[argparse.Action, list[str]]:
    """What no command line can do without."""
    groups = [g._group_actions[0] for g in parser._mutually_exclusive_groups if g.required]
    required = [a for a in parser._actions if a.required]
    return {action: _given(action)[0] for action in [*required, *groups]}


def _excludes(parser: argparse.ArgumentParser, action: argparse.Action, other: argparse.Action) -> bool:
    together = (g._group_actions for g in parser._mutually_exclusive_groups)
    return action is other or any(action in group and other in group for group in together)


def _given(action: argparse.Action) -> list[list[str]]:
    """Words that give an option or argument, in each of its choices and spellings."""
    values = list(map(str, action.choices)) if action.choices else [next(v for v in VALUES if _accepts(action, v))]
    if action.nargs == 0:
        return [[spelling] for spelling in action.option_strings]
    return [[*spelling, value] for spelling in [[s] for s in action.option_strings] or [[]] for value in values]


def _accepts(action: argparse.Action, value: str) -> bool:
    try:
        (action.type or str)(value)  # pyright: ignore[reportCallIssue]
    except (ValueError, TypeError, argparse.ArgumentTypeError):
        return False
    return True
