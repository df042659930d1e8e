"""Run what CI runs: ``python -m tools.check [--no-tests]``; exit 1 names what failed."""

from __future__ import annotations

import subprocess
import sys
import time

CHECKS = {
    "format": ["ruff", "format", "--check", "."],
    "lint": ["ruff", "check", "."],
    "types": ["basedpyright"],
    "imports": ["lint-imports"],
    "dependencies": ["deptry", "."],
    "spelling": ["codespell", "medvol", "configs", "tests", "tools", "README.md", "CHANGELOG.md"],
    "bundles": [sys.executable, "-m", "medvol", "bundle", "write", "--all", "--check"],
    "tests": [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile"],
}


def main() -> int:
    """Run every check, even after a failure, and print how long each took."""
    failed = []
    for name, command in CHECKS.items():
        if name == "tests" and "--no-tests" in sys.argv:
            continue
        start = time.perf_counter()
        print(f"== {name}: {' '.join(command)}", flush=True)
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
        print(f"== {name}: {time.perf_counter() - start:.0f} s", flush=True)
    print(f"failed: {', '.join(failed)}" if failed else "all checks passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
