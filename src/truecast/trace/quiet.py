"""Keeps libraries from logging what is put into words here, or what is no matter of an export."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

FAKE_TENSORS = "torch._subclasses.fake_tensor"
"""Logs the errors of an author's code that a trace catches."""
KERNELS = "transformers.integrations.hub_kernels"
"""Advises to install kernels of GPUs for state space models."""


@contextmanager
def silenced(*names: str) -> Iterator[None]:
    """Loggers that say nothing while the context lasts."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled
