"""What the authors published, as tables of text with their sources: the figures keep the digits that were printed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class Published:
    """One table. A figure that was not published is an empty text."""

    title: str
    source: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def records(self) -> list[dict[str, str]]:
        """The rows, by column."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


@lru_cache
def _content() -> dict[str, Any]:
    return json.loads((resources.files(__package__ or "") / "published.json").read_text(encoding="utf-8"))


def sources() -> dict[str, str]:
    """The short names that ``Published.source`` uses, and what they stand for."""
    return _content()["sources"]


def names() -> list[str]:
    """The tables there are."""
    return list(_content()["tables"])


def table(name: str) -> Published:
    """The table called ``name``.

    Raises:
        KeyError: there is none of that name.
    """
    found = _content()["tables"][name]
    return Published(found["title"], found["source"], tuple(found["columns"]), tuple(map(tuple, found["rows"])))
