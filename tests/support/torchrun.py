"""Programs that `torchrun` runs, each in processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys

AT_ITS_END = """
import os, sys
if sys.platform == "linux":
    threads = [open(f"/proc/self/task/{thread}/comm").read().strip() for thread in os.listdir("/proc/self/task")]
    left = [name for name in threads if "gloo" in name]
    assert not left, f"threads that may abort the process while the interpreter shuts down: {left}"
"""


def run_by_torchrun(text, script, *arguments, n_processes):
    """Run a program, from the file `script`, in processes that gloo connects; return what they have printed.

    Nothing of its process groups may be left at the end of the program.
    """
    script.write_text(text + AT_ITS_END)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_processes}"]
    command += [str(script), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
