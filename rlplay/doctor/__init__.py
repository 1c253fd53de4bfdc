"""``python -m rlplay doctor``: checks what of rlplay works on this machine, with a remedy for what does not.

Modules: ``verdicts`` (from facts to a verdict and a remedy: pure functions), ``trials`` (finds the facts by trying
things out), ``in_processes`` (what the trials run in child processes), ``command`` (the list of checks, and the printed
report).
"""
