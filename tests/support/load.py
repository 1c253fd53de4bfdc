"""A busy machine, for tests of what depends on time: processes that do nothing but compute."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager


@contextmanager
def busy_machine(times=4):
    """Compute in several processes for each core inside the `with` block."""
    n = times * (os.cpu_count() or 1)
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
