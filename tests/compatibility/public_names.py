"""What users name: the public names with their parameters, commands and options, environment variables, op schemas, and every
module and name that the pages show."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import importlib
import inspect
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lk_triton.cli.main import build_parser

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/*.md"))
PACKAGES = ("lk_triton", "lk_triton.nn", "lk_triton.models")
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DOTTED = re.compile(r"\blk_triton(?:\.[A-Za-z_]\w*)+")
VARIABLE = re.compile(r'(?<=")LK_TRITON_[A-Z_]+(?=")|(?<=\{)LK_TRITON_[A-Z_]+(?=[:}])')

VALUES = ("3", "x", "bfloat16", "3,5", "1,8,16,16", "x.csv", "x.png")
"""What an option or argument may take; an example of each uses the first that its parser accepts."""

CALLED = ("command", "program")
"""What a parser sets besides the values of options: what is called then."""

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
    """The environment variables that code reads: whole strings of Python, and ``${NAME}`` of setup.sh."""
    files = [file for folder in ("lk_triton", "bench", "models") for file in (ROOT / folder).rglob("*.py")]
    code = "\n".join(file.read_text(encoding="utf-8") for file in [*files, ROOT / "setup.sh"])
    return sorted(set(VARIABLE.findall(code)))


def commands() -> dict[str, dict[str, Any]]:
    """Command -> ``line``, the shortest that parses; ``values``, what it means; and ``options``: a line for each choice of an
    option, by its spelling, and of an argument, by its name."""
    return dict(_commands(parser(), []))


parser = functools.cache(build_parser)


def values(line: list[str]) -> dict[str, str]:
    """What a command line means, as text. Exits where it cannot be parsed."""
    parsed = vars(parser().parse_args(line))
    return {name: str(value).replace(str(ROOT), "ROOT") for name, value in parsed.items() if name not in CALLED}


def _commands(of: argparse.ArgumentParser, words: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    children = [a for a in of._actions if isinstance(a, argparse._SubParsersAction)]
    for action in children:
        for word, child in action.choices.items():
            yield from _commands(child, [*words, word])
    if not children:
        line = [*words, *(w for given in _needed(of).values() for w in given)]
        options: dict[str, list[list[str]]] = {}
        for action in of._actions:
            for given in _given(action) if not isinstance(action, argparse._HelpAction) else ():
                needed = [w for other, ws in _needed(of).items() if not _excludes(of, action, other) for w in ws]
                # an option of several values would swallow an argument behind it, and an argument of several an option's
                parts = [*needed, *given] if action.option_strings else [*given, *needed]
                options.setdefault(given[0] if action.option_strings else action.dest, []).append([*words, *parts])
        yield " ".join(words), {"line": line, "values": values(line), "options": options}


def _needed(of: argparse.ArgumentParser) -> dict[argparse.Action, list[str]]:
    """What no command line can do without."""
    groups = [g._group_actions[0] for g in of._mutually_exclusive_groups if g.required]
    required = [a for a in of._actions if a.required]
    return {action: _given(action)[0] for action in [*required, *groups]}


def _excludes(of: argparse.ArgumentParser, action: argparse.Action, other: argparse.Action) -> bool:
    together = (g._group_actions for g in of._mutually_exclusive_groups)
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
