"""What the trials run in child processes. Must not import torch, so that the processes start as fast as a user's do."""

from __future__ import annotations

import importlib
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

from ..engine.concurrency.link import Link

__all__ = ["ENVIRONMENT", "make_environment", "send_hello"]

ENVIRONMENT = "CartPole-v1"
"""Environment that the engines are tried with."""


def make_environment(library: str) -> Any:
    """Make an environment of a library (``gym`` or ``gymnasium``)."""
    with redirect_stderr(StringIO()):  # the import of gym prints four lines that are no finding of the doctor's
        module = importlib.import_module(library)
    return module.make(ENVIRONMENT)


def send_hello(link: Link) -> None:
    """Send one message."""
    link.write_object("hello")
