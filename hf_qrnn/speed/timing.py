"""Timing: calls in turns, the copy rate of the same run, and a record of the machine."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

Call = Callable[[], object]
Name = TypeVar("Name", bound=Hashable)

MIN_ROUNDS, MAX_ROUNDS = 5, 200
# Calls before the first that counts: caches, lazy initialisation, autotuning.
_WARM_UP = {"cpu": 1, "cuda": 3}


class Timing(NamedTuple):
    """Seconds of a call in every round.

    `busy` is the CPU time of this process. On a shared machine and with one thread it is more
    reliable than `seconds`. It is empty where a device computes.
    """

    seconds: tuple[float, ...]
    busy: tuple[float, ...] = ()

    @property
    def minimum(self) -> float:
        """The round that was disturbed least."""
        return min(self.seconds)

    @property
    def median(self) -> float:
        """The usual round."""
        return statistics.median(self.seconds)

    def split(self, count: float) -> Timing:
        """Return the same for one of `count` equal parts of the call."""
        return Timing(*(tuple(seconds / count for seconds in part) for part in self))

    @property
    def computing(self) -> Timing:
        """The same by the seconds in which this process computed."""
        return Timing(self.busy)


def times_as_fast(ours: Timing, theirs: Timing) -> float:
    """Return how many times as fast `ours` is as `theirs`: the median of paired ratios.

    The calls of a round follow one another at once, so what slows the machine down for a while
    slows both of them down.
    """
    pairs = zip(ours.seconds, theirs.seconds, strict=True)
    return statistics.median(b / a for a, b in pairs)


def interleave(
    calls: Mapping[Name, Call],
    *,
    device: torch.device | str = "cpu",
    seconds: float = 1.0,
    min_rounds: int = MIN_ROUNDS,
    max_rounds: int = MAX_ROUNDS,
    warm: bool = False,
) -> dict[Name, Timing]:
    """Time `calls` in turns, A/B/A/B, after each has warmed up.

    Args:
        calls: Functions to time, by name.
        device: Device of the work. On CUDA, events on the device's stream measure: the time of
            the device where it is the slower side, that of the launches where the host is.
        seconds: Time budget, checked after every round.
        min_rounds: Least number of rounds, whatever they take.
        max_rounds: Greatest number of rounds.
        warm: Whether all of them have been called before.

    Raises:
        ValueError: If there is nothing to time or no round to time it in.
    """
    if not calls or not 1 <= min_rounds <= max_rounds:
        raise ValueError(
            "`calls` and `min_rounds` must be at least 1, and `max_rounds` no less, "
            f"but are {len(calls)}, {min_rounds} and {max_rounds}."
        )
    kind = torch.device(device).type
    clock = _cuda_seconds if kind == "cuda" else _cpu_seconds
    for call in calls.values():
        for _ in range(0 if warm else _WARM_UP[kind]):
            call()
    found: dict[Name, list[tuple[float, ...]]] = {name: [] for name in calls}
    started = time.perf_counter()
    for number in range(1, max_rounds + 1):
        # One call of each, not all of one: what slows the machine for a while slows all of them.
        for name, call in calls.items():
            found[name].append(clock(call))
        if number >= min_rounds and time.perf_counter() - started > seconds:
            break
    return {name: Timing(*zip(*values, strict=True)) for name, values in found.items()}


def _cpu_seconds(call: Call) -> tuple[float, float]:
    started, began = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - started, time.process_time() - began


def _cuda_seconds(call: Call) -> tuple[float]:
    # Events of the device: the host's clock would time the launches only.
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    end.synchronize()
    return (start.elapsed_time(end) / 1e3,)


def captured(call: Call) -> Call:
    """Capture `call` as a CUDA graph to replay, so that no launch by the host is timed."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    # On a side stream, as capturing wants it: what is initialised late must be by then.
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP["cuda"]):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


class Copy(NamedTuple):
    """A plain copy of float32 and the bytes that it reads and writes."""

    call: Call
    num_bytes: int

    def rate(self, timing: Timing) -> float:
        """Compute GB/s, bytes read and written, of the usual round."""
        return self.num_bytes / timing.median / 1e9


def stream_copy(device: torch.device | str = "cpu", num_bytes: int | None = None) -> Copy:
    """Make a copy between two arrays that together are `num_bytes` (None: too large for any cache).

    With torch's threads, as many as `torch.set_num_threads` says.
    """
    if num_bytes is None:
        num_bytes = beyond_caches(device)
    source = torch.ones(num_bytes // 8, device=device)
    target = torch.zeros_like(source)  # written once, so that no page is new when time counts
    return Copy(lambda: target.copy_(source), 2 * 4 * source.numel())


def beyond_caches(device: torch.device | str = "cpu") -> int:
    """Return a number of bytes that stay in no cache: at least four times the last one, 256 MiB."""
    return max(4 * last_level_cache(device), 256 << 20)


def last_level_cache(device: torch.device | str = "cpu") -> int:
    """Return the bytes of the last cache before the memory; 0 where the system does not say."""
    if torch.device(device).type == "cuda":
        return int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0))
    sizes = [0]
    # Linux tells the caches of core 0; the largest is the last one.
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text(encoding="ascii").strip()
        unit = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 0)
        if unit:
            sizes.append(int(text[:-1]) * unit)
    return max(sizes)


@contextlib.contextmanager
def using_threads(count: int | None) -> Iterator[None]:
    """Use `count` threads for torch's work on the CPU within a block (None: as it is)."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Record what could explain a number: hardware, versions, threads, other load, date."""
    record: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "cpu": _cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "hf_qrnn": _own_version(),
    }
    if torch.device(device).type == "cuda":
        record |= {
            "gpu": torch.cuda.get_device_name(device),
            "capability": list(torch.cuda.get_device_capability(device)),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return record


def _own_version() -> str:
    """Return the version, also where a clone runs without having been installed."""
    try:
        return importlib.metadata.version("hf_qrnn")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def available_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_name() -> str:
    """Return the processor's name, or its architecture where the system does not say."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
