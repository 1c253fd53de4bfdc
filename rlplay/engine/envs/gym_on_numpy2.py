"""Let stock gym 0.26 run on NumPy 2: give two of its modules back the NumPy names that they use, and nobody else.

gym's code is frozen, and NumPy 2 removed ``bool8`` and ``float_``. Setting them on NumPy itself would change the
behaviour of every other library that asks for them; so each module gets a stand-in for its own global ``np``.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np

__all__ = ["patch_gym"]

_REMOVED: dict[str, dict[str, Any]] = {
    "gym.utils.passive_env_checker": {"bool8": np.bool_},
    "gym.envs.classic_control.acrobot": {"float_": np.float64},
}


class _NumPyWith(ModuleType):
    """NumPy as one module sees it: with a few names more."""

    def __init__(self, names: dict[str, Any]) -> None:
        super().__init__("numpy", np.__doc__)
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def patch_gym() -> None:
    """Mend those of gym's modules that are loaded. Does nothing on NumPy 1, or where it has been done."""
    if int(np.__version__.split(".")[0]) < 2:
        return
    for name, removed in _REMOVED.items():
        module = sys.modules.get(name)
        if module is not None and getattr(module, "np", None) is np:
            vars(module)["np"] = _NumPyWith(removed)
