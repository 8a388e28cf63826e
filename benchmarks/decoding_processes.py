"""Whole processes of bench_decoding.py: how long one takes, and the most memory it had."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SENTENCE = "Der Hund schläft.\n"
# A process of its own, and a small one: what the parent of a process had is counted for it too.
_LAUNCH = """
import json, resource, subprocess, sys, time
text = sys.stdin.buffer.read()
started = time.perf_counter()
done = subprocess.run(sys.argv[1:], input=text, capture_output=True)
seconds = time.perf_counter() - started
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps([seconds, peak, done.returncode, done.stdout.decode(), done.stderr.decode()]))
"""
_DECODE = """
import sys
from hf_qrnn.engine import Translator
folder, source, target = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
found = Translator(folder, backend="native").generate([[5] * source + [1]], max_new_tokens=target)
print(len(found[0][0].ids))
"""


class Process(NamedTuple):
    """A process that has ended: its seconds, its peak of memory in MB, what it wrote."""

    seconds: float
    peak_mb: float
    output: str


def launch(words: Sequence[str], text: str = "") -> Process:
    """Run a Python process of this checkout, with one thread.

    Raises:
        RuntimeError: If it fails.
    """
    # Isolated, and without the packages that Python looks for: this one only waits.
    waiting = [sys.executable, "-I", "-S", "-c", _LAUNCH, sys.executable]
    own: Mapping[str, str] = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*waiting, *words],
        input=text.encode(),
        stdout=subprocess.PIPE,
        env={**os.environ, **own},
        check=True,
    )
    seconds, peak, status, output, errors = json.loads(done.stdout)
    if status:
        raise RuntimeError(f"a process of the benchmark ended with {status}: {errors.strip()}")
    # Kilobytes on Linux, bytes on a Mac.
    return Process(seconds, peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6, output)


def translate(folder: Path, engine: str) -> Process:
    """Run `echo ... | hf-qrnn translate FOLDER --engine ENGINE`."""
    words = ["-m", "hf_qrnn", "translate", str(folder), "--engine", engine]
    return launch(words, SENTENCE)


def decode(folder: Path, source: int, target: int) -> Process:
    """Run a process that decodes one target of so many characters by the engine."""
    done = launch(["-c", _DECODE, str(folder), str(source), str(target)])
    if int(done.output) != target:
        raise RuntimeError(f"a target must have {target} characters, but has {done.output}.")
    return done


def file_megabytes(folder: Path) -> float:
    """Return the size of a model's weights on disk, in MB."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e6


def has_vnni() -> bool:
    """Tell whether this CPU multiplies int8 by instructions of its own."""
    path = Path("/proc/cpuinfo")
    words = path.read_text(encoding="utf-8", errors="replace").split() if path.is_file() else []
    return "avx512_vnni" in words or "avx_vnni" in words
