"""Group f: sanitizers, the profiler and the tests that want a GPU."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

from .plan import ROOT, Record, Setting, SkippedError

SCRIPT = ROOT / "scripts/gpu_check.py"


def _smoke(setting: Setting, tool: str) -> list[str]:
    """Write the command of what is watched; its records are apart from those of the steps."""
    command = [sys.executable, str(SCRIPT), "--step", "smoke", "--out", str(setting.out)]
    command += ["--carried", str(setting.carried), "--work", str(setting.work)]
    command += ["--records", str(setting.work / f"{tool}.jsonl")]
    return [*command, "--dry"] if setting.dry else command


def sanitizer(setting: Setting, tool: str) -> Iterator[Record]:
    """Run six small shapes under one tool of compute-sanitizer."""
    if shutil.which("compute-sanitizer") is None:
        raise SkippedError("no compute-sanitizer on PATH")
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
    command += ["--kernel-name", "kernel_substring=hf_qrnn"]
    done = subprocess.run(
        [*command, *_smoke(setting, tool)],
        capture_output=True,
        text=True,
        check=False,
        # Without torch's cache every tensor has bounds of its own.
        env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    )
    said = done.stdout + done.stderr
    if done.returncode and "not supported" in said:
        raise SkippedError(f"compute-sanitizer does not run here: {said[-300:]}")
    failed = done.returncode != 0
    yield {"status": "failed" if failed else "passed", "reason": said[-2000:] if failed else None}


def memcheck(setting: Setting) -> Iterator[Record]:
    """Look for accesses out of bounds."""
    yield from sanitizer(setting, "memcheck")


def racecheck(setting: Setting) -> Iterator[Record]:
    """Look for races in shared memory."""
    yield from sanitizer(setting, "racecheck")


def initcheck(setting: Setting) -> Iterator[Record]:
    """Look for reads of memory that nobody wrote."""
    yield from sanitizer(setting, "initcheck")


def synccheck(setting: Setting) -> Iterator[Record]:
    """Look for barriers that not all threads reach."""
    yield from sanitizer(setting, "synccheck")


def profile(setting: Setting) -> Iterator[Record]:
    """Read the counters of two kernels, where ncu may count."""
    if shutil.which("ncu") is None:
        raise SkippedError("no ncu on PATH")
    # The clocks stay as they are: the card is others' too.
    command = ["ncu", "--clock-control", "none", "-k", "regex:stream_|split_", "-c", "2"]
    done = subprocess.run(
        [*command, "--set", "basic", "--csv", *_smoke(setting, "ncu")],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SkippedError(f"ncu does not run here: {(done.stdout + done.stderr)[-300:]}")
    yield {"status": "measured", "csv": done.stdout[-20_000:]}


def gpu_tests(setting: Setting) -> Iterator[Record]:
    """Run the tests that want a GPU; a dry run only collects them."""
    for module in ("pytest", "hypothesis"):
        if importlib.util.find_spec(module) is None:
            raise SkippedError(f"{module} is not installed")
    names = ("kernels/test_gpu.py", "speed/test_timing.py", "training/test_graphs.py")
    files = [str(ROOT / "tests" / name) for name in names]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *files]
    command += ["--collect-only"] if setting.dry else []
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    status = "failed" if done.returncode else "passed"
    yield {"status": status, "reason": done.stdout[-2000:] if done.returncode else None}
