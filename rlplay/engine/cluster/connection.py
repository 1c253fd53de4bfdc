"""The only place that imports Ray, when it is asked for."""

from __future__ import annotations

from typing import Any

__all__ = ["connect"]


def connect() -> Any:
    """Return the module ``ray``; call ``ray.init()`` unless the program has called it.

    ``ray.init()`` connects to the cluster that the environment variable ``RAY_ADDRESS`` names, or to one that runs on
    this machine; without these it starts one on this machine, which ends with the program.

    Raises
    ------
    ImportError
        Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            '`cluster` needs Ray, which cannot be imported here: run `pip install "rlplay[ray]"`, or collect with '
            "`multi`, which needs nothing else and uses the processors of one machine."
        ) from error
    if not ray.is_initialized():
        ray.init()
    return ray
