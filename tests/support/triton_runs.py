"""Processes with Triton in them: it decides at its import whether it interprets."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def need_triton() -> None:
    """Fail without Triton where CUDA is developed, skip elsewhere."""
    if importlib.util.find_spec("triton") is None:
        reason = "Triton is not installed (pip install -c constraints.txt triton)"
        if shutil.which("nvcc"):
            pytest.fail(f"nvcc is here, but {reason}")
        pytest.skip(reason)


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # A parent's -p and -n options and its coverage are not the child's.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    return subprocess.run(
        [sys.executable, *arguments],
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def run_in_the_interpreter(name: str) -> None:
    """Run the tests of a file beside this one in Triton's interpreter; none may be skipped."""
    need_triton()
    file = str(Path(__file__).with_name(name))
    done = run_python("-m", "pytest", "-q", "-p", "no:cacheprovider", file, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    summary = done.stdout.strip().splitlines()[-1]
    assert " passed" in summary, summary
    assert "skipped" not in summary, summary
