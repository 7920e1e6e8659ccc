"""The logger ``lk_triton``. LK_TRITON_LOG (a level name such as DEBUG) sets its level and shows it on stderr."""

from __future__ import annotations

import logging
import os

logger = logging.getLogger("lk_triton")


def configure() -> None:
    """Read LK_TRITON_LOG; an unknown level is a warning, not an error."""
    level = os.environ.get("LK_TRITON_LOG")
    if not level:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(name)s %(levelname)s: %(message)s"))
    logger.addHandler(handler)
    if isinstance(logging.getLevelName(level.upper()), int):
        logger.setLevel(level.upper())
    else:
        logger.warning("LK_TRITON_LOG=%s is not a level: expected DEBUG, INFO, WARNING or ERROR", level)


configure()
