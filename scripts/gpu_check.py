"""Check and time the pooling kernels on a CUDA machine, in less than ten minutes.

    make gpu-check PYTHON=python3        # or: python3 scripts/gpu_check.py --output DIR

Needs torch and this repository, no set-up. Each step is a process of its own under a time limit;
what it finds is appended to DIR/gpu_check.jsonl at once, one JSON object a line with `step` and
`status` ("passed", "failed" with the `reason`, "skipped" with the `reason`, or "measured"). DIR is
$OUT, or runs/gpu_check without it.

Exit status: 0 if nothing failed, also where there is no CUDA device (one sentence says so); 1 if
something failed.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from hf_qrnn.kernels import POOLING_NUMBERS  # noqa: E402
from hf_qrnn.model.backends_qrnn import (  # noqa: E402
    backend_named,
    connection_kernels,
    unavailable,
    use_backend,
)
from hf_qrnn.model.pooling_qrnn import NUM_GATES, pool, state_dtype  # noqa: E402

Record = dict[str, Any]
Operation = Callable[..., tuple[torch.Tensor, ...]]

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# Of numbers in the gates' dtype and in the state's, relative to max(1, |expected|).
TOLERANCES = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (1e-5, 1e-5),
    torch.bfloat16: (2**-8, 1e-5),
    torch.float16: (2**-11, 1e-5),
}


class SkippedError(Exception):
    """A step cannot run here; the message says why."""


# ------------------------------------------------------------------ steps about the machine


def environment() -> Iterator[Record]:
    """Record the versions of everything that could explain a number."""
    record: Record = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda_of_torch": torch.version.cuda,
        "device": torch.cuda.get_device_name(),
        "capability": list(torch.cuda.get_device_capability()),
        # Under a sandboxed kernel profilers and sanitizers do not work.
        "kernel": platform.release(),
    }
    for name, command in {
        "nvidia_smi": [
            "nvidia-smi",
            "--query-gpu=driver_version,clocks.sm",
            "--format=csv,noheader",
        ],
        "nvcc": ["nvcc", "--version"],
    }.items():
        if shutil.which(command[0]) is None:
            record[name] = f"no {command[0]} on PATH"
            continue
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        record[name] = done.stdout.strip().splitlines()[-1:] or done.stderr.strip()
    yield {"status": "measured", **record}


def library() -> Iterator[Record]:
    """Load the library as it was built elsewhere and run its self-test."""
    from hf_qrnn import kernels

    reason = kernels.unavailable(torch.device("cuda"))
    loaded = kernels.load()
    status = "passed" if reason is None else "failed"
    yield {"status": status, "reason": reason, "path": str(loaded.path), **loaded.info}


def build(folder: Path) -> Iterator[Record]:
    """Build the library for this device alone, then run the self-test with it."""
    if shutil.which("nvcc") is None:
        raise SkippedError("no nvcc on PATH")
    major, minor = torch.cuda.get_device_capability()
    settings = {
        "HF_QRNN_BUILD": "cuda",
        "HF_QRNN_CUDA_ARCHS": f"{major}{minor}",
        "TORCH_EXTENSIONS_DIR": str(folder / "build"),
    }
    started = time.perf_counter()
    for command in (["-m", "hf_qrnn.kernels.build"], [__file__, "--step", "library"]):
        done = subprocess.run(
            [sys.executable, *command],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env={**os.environ, **settings},
        )
        if done.returncode:
            yield {"status": "failed", "reason": (done.stderr or done.stdout)[-2000:]}
            return
    yield {"status": "passed", "seconds": round(time.perf_counter() - started, 1)}


# ------------------------------------------------------------------ steps about values


def arguments(
    pooling: str, shape: tuple[int, int, int], dtype: torch.dtype, device: str, options: bool
) -> dict[str, torch.Tensor | None]:
    """Draw everything the operations take at random, on `device`."""
    batch, length, hidden = shape
    generator = torch.Generator().manual_seed(1)
    state = state_dtype(dtype)

    def normal(*sizes: int, kind: torch.dtype = dtype) -> torch.Tensor:
        x = torch.randn(*sizes, generator=generator, dtype=torch.float64)
        # Converted here, then copied: a sanitizer that watches our kernels alone sees the copy.
        return x.to(kind).to(device)

    channels = NUM_GATES[pooling] * hidden
    given: dict[str, torch.Tensor | None] = {
        "gates": normal(batch, length, channels),
        "bias": normal(batch, channels) if options else None,
        "initial_state": normal(batch, hidden, kind=state) if options else None,
        "mask": None,
        "seed": torch.tensor(7, device=device) if options else None,
    }
    if options:
        given["mask"] = (torch.rand(batch, length, generator=generator) < 0.8).to(device)
    given |= {
        "grad_h": normal(batch, length, hidden),
        "grad_c": normal(batch, length, hidden, kind=state),
        "grad_state": normal(batch, hidden, kind=state),
    }
    return given


def differences(
    forward: Operation,
    backward: Operation,
    pooling: str,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    device: str,
    options: bool,
) -> dict[str, float]:
    """Compute every result's error against the definition in float64, over its tolerance."""
    given = arguments(pooling, shape, dtype, device, options)
    grads = [given.pop(name) for name in ("grad_h", "grad_c", "grad_state")]
    number, zoneout = POOLING_NUMBERS[pooling], 0.3 if options else 0.0
    found = forward(*given.values(), number, zoneout, options, True, True)
    back = backward(*grads, *given.values(), found[3], number, zoneout, options)

    exact = {name: None if x is None else x.cpu() for name, x in given.items()}
    leaves = [name for name in ("gates", "bias", "initial_state") if exact[name] is not None]
    for name in leaves:
        exact[name] = exact[name].double().requires_grad_()  # type: ignore[union-attr]
    chosen = {"zoneout": zoneout, "reverse": options, "return_c": True, "backend": "torch"}
    wanted = pool(pooling=pooling, **chosen, **exact)  # type: ignore[arg-type]
    wanted_back = torch.autograd.grad(
        list(wanted),
        [exact[name] for name in leaves],  # type: ignore[misc]
        [g.cpu().double() for g in grads if g is not None],
    )
    pairs = dict(zip(("h", "c", "state"), zip(found, wanted, strict=False), strict=True))
    results = dict(zip(("gates", "bias", "initial_state"), back, strict=True))
    for name, want in zip(leaves, wanted_back, strict=True):
        pairs[f"grad_{name}"] = (results[name], want)
    errors = {}
    for name, (x, want) in pairs.items():
        tolerance = TOLERANCES[dtype][0 if x.dtype == dtype else 1]
        error = (x.detach().cpu().double() - want.detach()).abs() / want.detach().abs().clamp(min=1)
        # A comparison that NaN passes would be none.
        errors[name] = float(error.nan_to_num(nan=float("inf")).max()) / tolerance
    return errors


# Both forms by the table of kernels/csrc/cuda/pool_plan.h; odd sizes, one step, one channel.
SHAPES = [(2, 1, 1), (3, 37, 5), (4, 200, 64), (2, 31, 320), (128, 70, 258), (1, 1000, 7)]


def values(
    forward: Operation,
    backward: Operation,
    device: str = "cuda",
    shapes: list[tuple[int, int, int]] = SHAPES,
) -> Iterator[Record]:
    """Check values and gradients over kinds, dtypes, shapes and options; a record for each kind."""
    for pooling in POOLING_NUMBERS:
        wrong, checked, worst = [], 0, 0.0
        for dtype, shape, options in itertools.product(DTYPES, shapes, (False, True)):
            errors = differences(forward, backward, pooling, shape, dtype, device, options)
            checked += 1
            worst = max(worst, *errors.values())
            off = {name: error for name, error in errors.items() if error > 1}
            if off:
                wrong.append({"dtype": str(dtype), "shape": shape, "options": options, **off})
        yield {
            "status": "failed" if wrong else "passed",
            "reason": f"off by more than the tolerance: {wrong[:5]}" if wrong else None,
            "pooling": pooling,
            "checked": checked,
            "worst_over_tolerance": worst,
        }


def connections(
    backends: tuple[str, ...] = ("native", "triton"), device: str = "cuda"
) -> Iterator[Record]:
    """Values and gradients of the connection around a layer; a record for each backend."""
    cases = _module("tests/support", "connecting")
    for backend in backends:
        reason = unavailable(backend, torch.device(device))
        if reason is not None:
            yield {"status": "skipped", "reason": reason, "backend": backend}
            continue
        with use_backend(backend):
            kernels = connection_kernels(torch.device(device))
        wrong, worst = [], 0.0
        for case in cases.FEW:
            errors = cases.errors(case, *kernels, device=device)
            worst = max(worst, *errors.values())
            off = {name: error for name, error in errors.items() if error > 1}
            if off:
                wrong.append({"case": str(case), **off})
        yield {
            "status": "failed" if wrong else "passed",
            "reason": f"off by more than the tolerance: {wrong[:5]}" if wrong else None,
            "backend": backend,
            "checked": len(cases.FEW),
            "worst_over_tolerance": worst,
        }


def hard_cases(forward: Operation, backward: Operation) -> Iterator[Record]:
    """Check what a CPU cannot show: large sizes, streams, graphs, bit-equal repetition."""
    for name, case in {
        "two runs bit-equal": _repeats,
        "side stream": _side_stream,
        "CUDA graph": _graph,
        "batch of 70,000": functools.partial(_tail, shape=(70_000, 3, 2)),
        "more than 2^31 elements": functools.partial(_tail, shape=(70_000, 16, 1000)),
    }.items():
        reason = case(forward, backward)
        yield {"status": "failed" if reason else "passed", "reason": reason, "case": name}
        torch.cuda.empty_cache()


def _plain(forward: Operation, gates: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return forward(gates, None, None, None, None, 1, 0.0, False, False, True)


def _repeats(forward: Operation, backward: Operation) -> str | None:
    for shape in ((4, 1000, 320), (256, 100, 640)):
        gates = torch.randn(shape[0], shape[1], 3 * shape[2], device="cuda")
        bias = torch.zeros(shape[0], 3 * shape[2], device="cuda")
        runs = []
        for _ in range(2):
            out = forward(gates, bias, None, None, None, 1, 0.0, False, False, True)
            none = (None,) * 3
            back = backward(out[0], None, None, gates, bias, *none, out[3], 1, 0.0, False)
            runs.append((*out, *back))
        if not all(torch.equal(a, b) for a, b in zip(*runs, strict=True)):
            return f"two runs differ at {shape}"
    return None


def _side_stream(forward: Operation, backward: Operation) -> str | None:
    gates = torch.randn(64, 512, 960, device="cuda")
    wanted = _plain(forward, gates)[0]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # Work that the kernel must wait for, on this stream and no other.
        late = gates * 0
        for _ in range(50):
            late = late + gates / 50
        found = _plain(forward, late)[0]
    torch.cuda.synchronize()
    close = torch.allclose(found, wanted, atol=1e-4)
    return None if close else "results on a side stream do not follow that stream's work"


def _graph(forward: Operation, backward: Operation) -> str | None:
    gates = torch.randn(8, 128, 960, device="cuda")
    seed = torch.tensor(1, device="cuda")

    def step() -> torch.Tensor:
        return forward(gates, None, None, None, seed, 1, 0.5, False, False, False)[0]

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for number in (1, 2):
        seed.fill_(number)
        graph.replay()
        if not torch.equal(captured, step()):
            return f"a replay with seed {number} differs from a call"
    return None


def _tail(forward: Operation, backward: Operation, shape: tuple[int, int, int]) -> str | None:
    batch, length, hidden = shape
    needed = 8 * batch * length * 3 * hidden  # gates, their gradient, h, tiles and room
    if torch.cuda.mem_get_info()[0] < needed:
        raise SkippedError(f"{needed >> 30} GiB of GPU memory are not free")
    gates = torch.empty(batch, length, 3 * hidden, device="cuda", dtype=torch.bfloat16).normal_()
    out = _plain(forward, gates)
    back = backward(out[0], None, None, gates, *[None] * 4, out[3], 1, 0.0, False)
    rows = slice(batch - 2, batch)
    near = gates[rows].clone()
    small = _plain(forward, near)
    small_back = backward(small[0], None, None, near, *[None] * 4, small[3], 1, 0.0, False)
    # A small batch may take the other form: equal up to rounding.
    same = torch.allclose(out[0][rows].float(), small[0].float(), atol=2e-2)
    same &= torch.allclose(back[0][rows].float(), small_back[0].float(), atol=2e-2)
    return None if same else f"the last rows of {shape} differ from the same rows alone"


# ------------------------------------------------------------------ tools


def smoke(forward: Operation, backward: Operation) -> Iterator[Record]:
    """Small cases of all kernels, for the sanitizers to watch."""
    shapes = [(3, 37, 5), (2, 140, 66), (1, 33, 1)]
    yield from values(forward, backward, shapes=shapes)
    yield from connections(("native",))


def sanitizer(tool: str) -> Iterator[Record]:
    """Runs `smoke` under one tool of compute-sanitizer."""
    if shutil.which("compute-sanitizer") is None:
        raise SkippedError("no compute-sanitizer on PATH")
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
    command += ["--kernel-name", "kernel_substring=hf_qrnn", sys.executable, __file__]
    done = subprocess.run(
        [*command, "--step", "smoke"],
        capture_output=True,
        text=True,
        check=False,
        # Without torch's cache every tensor has bounds of its own.
        env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    )
    if done.returncode and "not supported" in done.stdout + done.stderr:
        raise SkippedError(f"compute-sanitizer does not run here: {done.stdout[-300:]}")
    failed = done.returncode != 0
    said = (done.stdout + done.stderr)[-2000:]
    yield {"status": "failed" if failed else "passed", "reason": said if failed else None}


def profile() -> Iterator[Record]:
    """Basic figures of our kernels, where ncu may count."""
    if shutil.which("ncu") is None:
        raise SkippedError("no ncu on PATH")
    command = ["ncu", "--clock-control", "none", "-k", "regex:stream_|split_", "-c", "4"]
    done = subprocess.run(
        [*command, "--set", "basic", "--csv", sys.executable, __file__, "--step", "smoke"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SkippedError(f"ncu does not run here: {(done.stdout + done.stderr)[-300:]}")
    yield {"status": "measured", "csv": done.stdout[-20_000:]}


# ------------------------------------------------------------------ tests that want a GPU


def gpu_tests() -> Iterator[Record]:
    """Run the tests that want a GPU."""
    for module in ("pytest", "hypothesis"):
        if importlib.util.find_spec(module) is None:
            raise SkippedError(f"{module} is not installed")
    names = ("kernels/test_gpu.py", "speed/test_timing.py")
    files = [str(ROOT / "tests" / name) for name in names]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    status = "failed" if done.returncode else "passed"
    yield {"status": status, "reason": done.stdout[-2000:] if done.returncode else None}


# ------------------------------------------------------------------ speed


def benchmark(name: str, *options: str) -> Iterator[Record]:
    """Run a benchmark and yield its records as they come."""
    module = _benchmarks(name)
    for record in module.measure(module.make_parser().parse_args(options)):
        skipped = {"status": "skipped", "reason": record.get("skipped")}
        yield {**(skipped if "skipped" in record else {"status": "measured"}), **record}


def goals(folder: Path) -> Iterator[Record]:
    """Compare what was measured with its goals; a missed one is a finding, not a failure."""
    lines = (folder / "gpu_check.jsonl").read_text(encoding="utf-8").splitlines()
    verdicts, unmeasured = _benchmarks("goals").judge(
        [x for x in (json.loads(line) for line in lines if line.startswith("{")) if "bench" in x]
    )
    for verdict in verdicts:
        yield {"status": "measured", **verdict._asdict(), "met": verdict.met}
    yield {"status": "measured", "unmeasured": [x for x in unmeasured if x.startswith("GPU")]}


def _benchmarks(name: str) -> Any:
    return _module("benchmarks", name)


def _module(folder: str, name: str) -> Any:
    path = str(ROOT / folder)
    if path not in sys.path:
        sys.path.insert(0, path)
    return importlib.import_module(name)


# ------------------------------------------------------------------ running


def operations() -> tuple[Operation, Operation]:
    """Return the compiled library's forward and backward operations."""
    from hf_qrnn import kernels

    reason = kernels.unavailable(torch.device("cuda"))
    if reason is not None:
        raise SkippedError(f"no compiled library for this device: {reason}")
    return kernels.operation("pool_forward"), kernels.operation("pool_backward")


def triton_operations() -> tuple[Operation, Operation]:
    """Return the Triton kernels, to be called as the library's operations are."""
    reason = unavailable("triton", torch.device("cuda"))
    if reason is not None:
        raise SkippedError(reason)
    kinds = {number: kind for kind, number in POOLING_NUMBERS.items()}

    def named(operation: Operation, num_options: int) -> Operation:
        def call(*arguments: Any) -> tuple[torch.Tensor, ...]:
            tensors, options = arguments[:-num_options], arguments[-num_options:]
            return operation(*tensors, kinds[options[0]], *options[1:])

        return call

    triton = backend_named("triton")
    return named(triton.forward, 5), named(triton.backward, 3)


# Seconds each may take; under ten minutes in all.
STEPS = {
    "environment": 10,
    "library": 20,
    "build": 70,
    "values": 45,
    "triton": 30,
    "connect": 20,
    "hard_cases": 40,
    "pytest": 75,
    "memcheck": 30,
    "racecheck": 30,
    "initcheck": 30,
    "synccheck": 30,
    "pooling": 50,
    "layer": 75,
    "convolution": 14,
    "goals": 10,
    "profile": 20,
}


def records_of(step: str, folder: Path) -> Iterator[Record]:
    """Yield what a step finds, as it finds it."""
    if step.endswith("check") and step in STEPS:
        return sanitizer(step)
    if step in ("build", "goals"):
        return {"build": build, "goals": goals}[step](folder)
    brief = ("--device", "cuda", "--seconds", "0.05")
    plain: dict[str, Callable[[], Iterator[Record]]] = {
        "environment": environment,
        "library": library,
        "profile": profile,
        "connect": connections,
        "pytest": gpu_tests,
        "pooling": functools.partial(benchmark, "bench_pooling", *brief),
        "layer": functools.partial(benchmark, "bench_layer", *brief, "--grid", "goals"),
        "convolution": functools.partial(benchmark, "bench_convolution", *brief),
    }
    if step in plain:
        return plain[step]()
    if step == "triton":
        return values(*triton_operations())
    with_operations = {"values": values, "hard_cases": hard_cases, "smoke": smoke}
    return with_operations[step](*operations())


def run_step(step: str, folder: Path) -> int:
    """One step in this process: a line of JSON for each record, on standard output."""
    failed = False
    try:
        for record in records_of(step, folder):
            failed |= record["status"] == "failed"
            print(json.dumps({"step": step, **record}), flush=True)
    except SkippedError as skipped:
        print(json.dumps({"step": step, "status": "skipped", "reason": str(skipped)}), flush=True)
    return int(failed)


def run_all(steps: dict[str, int], command: list[str], results: Path) -> int:
    """Run every step in a process of its own; return the number of steps that failed.

    `command` with the step's name appended runs it. A step that is killed at its limit, or ends
    without a record, has failed; what it had found by then is kept.
    """
    failures = 0
    for step, limit in steps.items():
        print(f"{step} (at most {limit} s) ...", flush=True)
        before = results.read_text(encoding="utf-8") if results.exists() else ""
        with results.open("a", encoding="utf-8") as output:
            try:
                done = subprocess.run(
                    [*command, step],
                    stdout=output,
                    stderr=subprocess.PIPE,
                    text=True,
                    check=False,
                    timeout=limit,
                )
                reason = done.stderr[-2000:] if done.returncode else None
            except subprocess.TimeoutExpired:
                reason = f"it took more than {limit} s"
        lines = results.read_text(encoding="utf-8")[len(before) :].splitlines()
        statuses = [json.loads(line)["status"] for line in lines if line.startswith("{")]
        if "failed" not in statuses and (reason is not None or not statuses):
            statuses.append("failed")
            with results.open("a", encoding="utf-8") as output:
                record = {"step": step, "status": "failed", "reason": reason or "no record"}
                output.write(json.dumps(record) + "\n")
        failures += "failed" in statuses
        print(f"{step}: {', '.join(dict.fromkeys(statuses))}", flush=True)
    return failures


def main() -> int:
    """Run all steps, or the one named by --step; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    default = Path(os.environ.get("OUT") or ROOT / "runs" / "gpu_check")
    parser.add_argument(
        "--output",
        type=Path,
        default=default,
        help="folder of the results ($OUT, or runs/gpu_check)",
    )
    parser.add_argument(
        "--step", choices=[*STEPS, "smoke"], help="run only this step, in this process"
    )
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu_check: torch sees no CUDA device here, so there is nothing to check.")
        return 0
    if options.step is not None:
        return run_step(options.step, options.output)
    options.output.mkdir(parents=True, exist_ok=True)
    results = options.output / "gpu_check.jsonl"
    results.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--output", str(options.output), "--step"]
    failures = run_all(STEPS, command, results)
    print(f"{failures} of {len(STEPS)} steps failed; results in {results}")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
