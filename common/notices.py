"""What people are told once in a process: a default that stands in for what a file says."""

from __future__ import annotations

import logging
from functools import cache

logger = logging.getLogger(__name__)


@cache
def tell_once(notice: str | None) -> None:
    """Log `notice` as a warning, unless it was logged before; None: nothing."""
    if notice is not None:
        logger.warning("%s", notice)
