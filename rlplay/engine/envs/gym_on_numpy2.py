"""Makes stock gym 0.26 run on NumPy 2: gives two of gym's modules the NumPy names back that they use.

NumPy 2 removed ``bool8`` and ``float_``, and gym is no longer changed. Setting these names on NumPy itself would change
the behaviour of other libraries that test for them, so each of the two modules gets a proxy for its own global ``np``.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np

__all__ = ["patch_gym"]

_REMOVED_NAMES: dict[str, dict[str, Any]] = {
    "gym.utils.passive_env_checker": {"bool8": np.bool_},
    "gym.envs.classic_control.acrobot": {"float_": np.float64},
}


class _NumPyProxy(ModuleType):
    """NumPy with some additional names."""

    def __init__(self, names: dict[str, Any]) -> None:
        super().__init__("numpy", np.__doc__)
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def patch_gym() -> None:
    """Patch those of gym's modules that have been imported. Does nothing on NumPy 1, or where it was done before."""
    if int(np.__version__.split(".")[0]) < 2:
        return
    for name, removed in _REMOVED_NAMES.items():
        module = sys.modules.get(name)
        if module is not None and getattr(module, "np", None) is np:
            vars(module)["np"] = _NumPyProxy(removed)
