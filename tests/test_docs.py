"""Every code block of README, CONTRIBUTING and docs/ runs: Python as it stands, and every ``lk-triton`` command.

A page is one program: its Python blocks run in order, sharing a namespace. A fence with ``notest`` after its language is left
alone; README's two set-up commands are that, because they are what runs this suite.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from lk_triton.cli import images
from lk_triton.models import create_model, randomize_

ROOT = Path(__file__).parent.parent
PAGES = [p for p in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))) if p.exists()]
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^(?:\$ )?((?:\w+=\S+ )*lk-triton .*)$")


class Block(NamedTuple):
    language: str
    line: int
    text: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    found = []
    for fence in FENCE.finditer(text):
        if "notest" not in fence[2].split():
            found.append(Block(fence[1], text.count("\n", 0, fence.start()) + 1, fence[3]))
    return found


def commands(page: Path) -> list[tuple[int, str]]:
    """(line, command) of every ``lk-triton`` command, prompts and comments removed."""
    found = []
    for block in blocks(page):
        if block.language in ("bash", "console", "sh"):
            for i, line in enumerate(block.text.splitlines()):
                match = COMMAND.match(line)
                if match:
                    found.append((block.line + 1 + i, match[1]))
    return found


def environment() -> dict[str, str]:
    """What a reader without a GPU has: CPU tensors take the torch algorithm."""
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file like the published one, with random weights."""
    file = tmp_path_factory.mktemp("checkpoints") / "RepLKNet-31B_ImageNet-1K_224.pth"
    torch.save(randomize_(create_model("replknet_31b")).state_dict(), file)
    return file


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if any(b.language == "python" for b in blocks(p))], ids=lambda p: p.name)
def test_python_blocks_run(page: Path, tmp_path: Path) -> None:
    lines = [""] * (page.read_text().count("\n") + 1)
    for block in blocks(page):
        if block.language == "python":
            code = block.text.splitlines()
            lines[block.line : block.line + len(code)] = code  # line numbers of a traceback are those of the page
    program = tmp_path / f"{page.stem}.py"
    program.write_text("\n".join(lines))
    done = subprocess.run([sys.executable, str(program)], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("page", "line", "command"), [(p, *c) for p in PAGES for c in commands(p)],
                         ids=lambda v: v.name if isinstance(v, Path) else str(v))  # fmt: skip
def test_commands_run(page: Path, line: int, command: str, checkpoint: Path, tmp_path: Path) -> None:
    for folder in ("photos", "stimuli"):
        (tmp_path / folder).mkdir()
    for file in ("photo.jpg", "photos/a.jpg", "photos/b.png", "stimuli/cat1-dog1.png", "stimuli/dog1-car1.png"):
        images.sample().save(tmp_path / file)
    (tmp_path / checkpoint.name).symlink_to(checkpoint)
    words = shlex.split(command, comments=True)
    variables = dict(word.split("=", 1) for word in words[: words.index("lk-triton")])
    arguments = [sys.executable, "-m", "lk_triton.cli", *words[words.index("lk-triton") + 1 :]]
    done = subprocess.run(arguments, cwd=tmp_path, env=environment() | variables, capture_output=True, text=True)
    assert done.returncode == 0, f"{page.name}:{line}: {command}\n{done.stderr}"


def test_every_page_was_found() -> None:
    assert {"README.md", "CONTRIBUTING.md", "cli.md"} <= {p.name for p in PAGES}
    assert any("lk-triton run" in command for _, command in commands(ROOT / "README.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
