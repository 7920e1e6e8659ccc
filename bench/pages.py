"""Named blocks in pages: what stands between ``<!-- bench NAME: begin -->`` and ``<!-- bench NAME: end -->`` is generated."""

from __future__ import annotations

import re

from . import usage

_BEGIN = re.compile(r"<!-- bench ([a-z-]+): begin -->")


def markers(name: str) -> tuple[str, str]:
    """The lines before and behind a block."""
    return f"<!-- bench {name}: begin -->", f"<!-- bench {name}: end -->"


def names(text: str) -> list[str]:
    """The blocks of a page, in their order."""
    return _BEGIN.findall(text)


def rewrite(text: str, name: str, content: str) -> str:
    """``text`` with ``content`` between the markers of ``name``.

    Raises:
        UsageError: the text does not have each marker once.
    """
    begin, end = markers(name)
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise usage.UsageError(f"expected the lines {begin!r} and {end!r}, once each")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{content}\n{end}{rest.split(end)[1]}"
