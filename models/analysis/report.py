"""A report as one HTML file: no network, pictures inside, light and dark as the reader's system asks for."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path


@dataclass(frozen=True)
class Picture:
    """A PNG with what a reader who cannot see it needs; ``dark`` replaces it on a dark page."""

    png: bytes
    caption: str
    dark: bytes | None = None


@dataclass(frozen=True)
class Table:
    """Columns and rows of text; a number is text already, so that the page shows what the author chose to show.

    The first ``words`` columns stand to the left, the numbers after them to the right.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1


@dataclass(frozen=True)
class Section:
    """A heading, text, then pictures and a table side by side where the page is wide enough; ``wide``: one below the other."""

    title: str
    text: str = ""
    pictures: Sequence[Picture] = ()
    table: Table | None = None
    wide: bool = False


@dataclass(frozen=True)
class Report:
    """A page. ``notes`` stand out at its top: warnings, what is missing. ``facts`` end it: versions, sources."""

    title: str
    summary: str
    sections: Sequence[Section]
    notes: Sequence[str] = ()
    facts: Sequence[tuple[str, str]] = field(default=())

    def html(self) -> str:
        """The page."""
        from jinja2 import Environment

        template = (resources.files(__package__ or "") / "report.html").read_text(encoding="utf-8")
        environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        environment.filters |= {"data_uri": data_uri, "breakable": breakable}
        return environment.from_string(template).render(report=self)

    def write(self, file: Path) -> None:
        """Write the page; it appears whole or not at all."""
        temporary = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            temporary.write_text(self.html(), encoding="utf-8")
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)


def breakable(text: str) -> str:
    """Text as HTML that may break after the marks inside a model's name or a path."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([_:./])(?=\w)", r"\1<wbr>", str(escape(text))))


def data_uri(png: bytes) -> str:
    """A PNG as the text of a ``src``."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
