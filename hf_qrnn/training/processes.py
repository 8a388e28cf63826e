"""Connects the processes of a run: small sums, objects and errors that all of them must know."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import TorchDynamoPlugin

from .checkpoint import CheckpointError, RunError
from .options import RunOptions

Result = TypeVar("Result")


class Processes:
    """The exchange of numbers and objects between the processes of a run, without a GPU.

    Every process must call each method at the same point. Where GPUs train, a second group on the
    CPU carries what is exchanged, so that the kernels already queued need not end first.

    Args:
        accelerator: Knows the processes.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.rank: int = accelerator.process_index
        self.count: int = accelerator.num_processes
        self.is_main: bool = accelerator.is_main_process
        self._group: Any = None
        if self.count > 1 and dist.get_backend() != "gloo":
            self._group = dist.new_group(backend="gloo")

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sum each of the values over all processes, in float64."""
        if self.count == 1:
            return [float(value) for value in values]
        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums, group=self._group)
        result: list[float] = sums.tolist()
        return result

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, in the order of their ranks, on every process."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, group=self._group)
        return values

    def together(self, work: Callable[[], Result]) -> Result:
        """Do `work` on every process; where it fails on one, all raise its error.

        Raises:
            CheckpointError: On every process, if one of them raised it.
            RunError: The same of an OSError, ValueError or TypeError.
        """
        if self.count == 1:
            return work()
        # A process that raised alone would leave the others waiting for it.
        results, fault = [], None
        try:
            results.append(work())
        except (OSError, ValueError, TypeError) as error:
            fault = (isinstance(error, CheckpointError), str(error))
        for found in self.gather(fault):
            if found is not None:
                raise (CheckpointError if found[0] else RunError)(found[1])
        return results[0]

    def main_first(self, work: Callable[[], Result]) -> Result:
        """Do `work` on the main process, then on the others, and return each one's own result.

        They find what it left in a cache. `work` must not return None.
        """
        first = self.together(lambda: work() if self.is_main else None)
        return work() if first is None else first


def make_accelerator(options: RunOptions) -> Accelerator:
    """Make the Accelerator of a script, with nothing silently missing.

    Raises:
        ValueError: If a tracker is unknown or not installed, or the number of processes is not
            `expect_world_size`.
    """
    report_to, expected = options.report_to, options.expect_world_size
    names = [] if report_to == "none" else [name.strip() for name in report_to.split(",")]
    installed = [str(name) for name in get_available_trackers()]
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
            raise ValueError(f"`report_to` must be none or some of {known}, but has {name!r}.")
        if name not in installed:
            raise ValueError(f"`report_to` must name installed trackers, but {name!r} is not.")
    # Dynamic: batches have all lengths, and each would be compiled anew.
    compiled = {"dynamo_plugin": TorchDynamoPlugin(backend="inductor", dynamic=True)}
    accelerator = Accelerator(
        cpu=options.cpu,
        mixed_precision=choose_precision(options.mixed_precision, cpu=options.cpu),
        log_with=names or None,
        project_dir=f"{options.output_dir}/trackers" if names else None,
        **(compiled if options.compile else {}),
    )
    # A launcher that lacks a flag may start one process, or several that do not know each other.
    if expected not in (0, accelerator.num_processes):
        raise ValueError(
            f"`expect_world_size` must be the number of processes, {accelerator.num_processes}, "
            f"but is {expected}: on a CPU `accelerate launch` needs ACCELERATE_USE_CPU=1 and "
            "--multi_gpu (docs/training.md)."
        )
    return accelerator


def advise_processes(accelerator: Accelerator) -> str | None:
    """Return how a run of one process with several CPU threads would be faster; else None.

    Two threads share products only; two processes share all of an update but its one sum.
    """
    threads = torch.get_num_threads()
    if accelerator.device.type != "cpu" or accelerator.num_processes > 1 or threads < 2:
        return None
    script = sys.argv[0] if sys.argv[0].endswith(".py") else "SCRIPT.py"
    return (
        f"{threads} processes of one thread each are faster than one of {threads} threads: "
        f"torchrun --standalone --nproc_per_node {threads} {script} --cpu --num_threads 1 ..."
    )


def choose_precision(wanted: str, *, cpu: bool) -> str:
    """Return `wanted`, "no" or "bf16"; for "auto" the one that trains faster here.

    That is bf16 on a GPU of compute capability 8.0 or more, and on a processor that multiplies
    bfloat16 itself (AMX, AVX-512 BF16).
    """
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available() and not cpu:
        fast = torch.cuda.get_device_capability()[0] >= 8
    else:
        fast = not {"amx_bf16", "avx512_bf16"}.isdisjoint(processor_flags())
    return "bf16" if fast else "no"


def processor_flags() -> set[str]:
    """Return what Linux says the processor can do; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def start_trackers(accelerator: Accelerator, options: dict[str, Any]) -> None:
    """Begin the trackers that `report_to` named, with all options of the run."""
    if accelerator.log_with:
        # TensorBoard, for one, takes no lists and no None.
        plain = {k: v if isinstance(v, (int, float, str)) else str(v) for k, v in options.items()}
        accelerator.init_trackers("hf_qrnn", config=plain)


def describe_processes(accelerator: Accelerator) -> str:
    """Describe world size, backend, device and precision in one line."""
    backend = dist.get_backend() if accelerator.num_processes > 1 else "none"
    kind = str(accelerator.distributed_type).rpartition(".")[2]
    return (
        f"world size {accelerator.num_processes}, backend {backend}, {kind}, "
        f"device {accelerator.device.type}, "
        f"mixed precision {accelerator.mixed_precision}, {torch.get_num_threads()} CPU thread(s)"
    )
