"""Test modules are independent: what several of them use is in `tests/support`."""

import re
from pathlib import Path


def test_no_test_module_imports_another_one():
    for path in Path(__file__).parent.rglob("*.py"):
        found = re.findall(r"^\s*(?:from|import) (?:tests|\.).*\btest_\w+.*", path.read_text(), re.MULTILINE)
        assert not found, f"{path}: {found}"
