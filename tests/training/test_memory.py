"""The memory of a run on a CPU: few kernels kept, freed memory given back."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
from training_script import flags, load_script

from hf_qrnn.model.internals_qrnn import onednn_linear
from hf_qrnn.training import loop, memory
from hf_qrnn.training.run import run_task

IS_GLIBC = memory._trimmer() is not None

# Megabytes that 100 products of as many shapes leave behind.
PRODUCTS = """
import sys, torch
from hf_qrnn.model.internals_qrnn import onednn_linear
from hf_qrnn.training.memory import bound_kernel_caches
bound_kernel_caches()
torch.set_num_threads(1)
multiply, weight = onednn_linear(), torch.randn(96, 80)
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6
multiply(torch.randn(600, 80), weight, None)
before = resident()
for rows in range(401, 501):
    multiply(torch.randn(rows, 80), weight, None)
print(resident() - before)
"""


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in memory.CACHE_VARIABLES:
        monkeypatch.setenv(name, "")  # so that it is undone
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("unset")
def test_the_environment_says_how_many_kernels_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = memory.CACHE_VARIABLES
    monkeypatch.setenv(first, "0")
    monkeypatch.setenv(second, "0")  # with none at all torch ends the process
    memory.bound_kernel_caches()
    assert [os.environ[name] for name in (first, second)] == ["0", str(memory.KEPT_KERNELS)]
    monkeypatch.setenv(first, "")
    monkeypatch.setenv(second, "7")
    memory.bound_kernel_caches()
    assert [os.environ[name] for name in (first, second)] == [str(memory.KEPT_KERNELS), "7"]


@pytest.mark.usefixtures("unset")
@pytest.mark.skipif(sys.platform != "linux" or onednn_linear() is None, reason="asks /proc, oneDNN")
def test_few_kernels_are_kept() -> None:
    def left(**environment: str) -> float:
        words = [sys.executable, "-c", PRODUCTS]
        environment = {**os.environ, **environment}
        return float(subprocess.check_output(words, text=True, env=environment))

    kept = left()
    everything = left(**dict.fromkeys(memory.CACHE_VARIABLES, "1024"))  # and it is heard
    assert everything > 10
    assert kept < 0.6 * everything


@pytest.mark.usefixtures("unset")
def test_a_run_bounds_the_kernels_and_gives_memory_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    monkeypatch.setattr(loop, "give_back", steps.append)
    monkeypatch.setenv(memory.CACHE_VARIABLES[1], "7")
    script = load_script()
    assert run_task(script.TranslationTask, flags(tmp_path, max_steps=3, log_every=3)) == 0
    assert steps == [1, 2, 3]
    bounds = [os.environ[name] for name in memory.CACHE_VARIABLES]
    assert bounds == [str(memory.KEPT_KERNELS), "7"]


@pytest.mark.skipif(not IS_GLIBC, reason="glibc alone keeps memory so")
def test_freed_memory_is_given_back_between_what_is_kept() -> None:
    c = ctypes.CDLL(None)
    c.malloc.restype, c.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    size, number = 60_000, 1000
    chunks = [c.malloc(size) for _ in range(number)]
    for chunk in chunks:
        ctypes.memset(chunk, 1, size)
    for index, chunk in enumerate(chunks):
        if index % 10:
            c.free(chunk)
    before = resident()
    memory.give_back(memory.UPDATES_BETWEEN + 1)
    assert resident() > before - size * number // 10
    memory.give_back(2 * memory.UPDATES_BETWEEN)
    assert resident() < before - size * number // 2
    for chunk in chunks[::10]:
        c.free(chunk)


def test_another_c_library_has_nothing_to_give_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_symbols(name: object) -> object:
        return object()

    monkeypatch.setattr(ctypes, "CDLL", no_symbols)
    memory._trimmer.cache_clear()
    try:
        memory.give_back(memory.UPDATES_BETWEEN)
        assert memory._trimmer() is None
    finally:
        memory._trimmer.cache_clear()
