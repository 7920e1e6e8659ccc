"""Headless Chromium, for what only a browser can tell of a page: does it fit, do its pictures load, does it fetch anything."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCHEMES, WIDTHS = ("light", "dark"), (390, 1280)
MEASURE = """
const root = document.documentElement;
return {
    scroll: root.scrollWidth, client: root.clientWidth, text: document.body.innerText,
    pictures: [...document.images].map(image => image.naturalWidth),
    sources: [...document.images].map(image => image.currentSrc.length),
    background: getComputedStyle(document.body).backgroundColor,
    fetched: performance.getEntriesByType("resource").map(entry => entry.name).filter(name => !name.startsWith("data:")),
};
"""


@dataclass(frozen=True)
class View:
    """A page in one colour scheme at one width; widths in pixels."""

    scroll: int
    client: int
    text: str
    pictures: list[int]
    sources: list[int]
    background: str
    fetched: list[str]


class Browser:
    """One Chromium for many pages; ``close`` it."""

    def __init__(self) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = _find("chromium")
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
            options.add_argument(argument)
        self.driver = webdriver.Chrome(options=options, service=Service(_find("chromedriver")))

    def view(self, page: Path, scheme: str, width: int) -> View:
        """``page`` as a reader sees it who prefers ``scheme`` ("light" or "dark") in a window of that width."""
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self._send("Emulation.setEmulatedMedia", media)
        self._send(
            "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        )
        self.driver.get(page.resolve().as_uri())
        return View(**self.driver.execute_script(MEASURE))

    def _send(self, command: str, arguments: dict[str, Any]) -> None:
        self.driver.execute_cdp_cmd(command, arguments)

    def close(self) -> None:
        self.driver.quit()


def missing() -> str | None:
    """Why there is no browser here, or None."""
    lacking = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"no {' and no '.join(lacking)}: apt install chromium chromium-driver" if lacking else None


def _find(name: str) -> str:
    found = shutil.which(name)
    assert found is not None, missing()
    return found


def check(browser: Browser, page: Path, *numbers: str) -> None:
    """The page fits, its pictures load, nothing is fetched, and ``numbers`` stand in it, in both schemes at both widths."""
    backgrounds = set()
    for scheme in SCHEMES:
        for width in WIDTHS:
            view = browser.view(page, scheme, width)
            where = f"{page.name}, {scheme}, {width} px"
            assert view.client == width, where
            assert view.scroll <= view.client, where
            assert all(natural > 0 for natural in view.pictures), where
            assert not view.fetched, where
            for number in numbers:
                assert number in view.text, f"{where}: {number}"
            backgrounds.add((scheme, view.background))
    assert len(backgrounds) == len(SCHEMES), "light and dark look alike"
