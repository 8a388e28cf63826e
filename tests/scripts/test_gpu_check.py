"""scripts/gpu_check.py without a GPU: its bookkeeping, its comparison on emulated kernels."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import connecting
import pytest
import torch
from cuda_emulation import Emulated, missing_tool

from hf_qrnn import kernels
from hf_qrnn.model.backends_qrnn import VARIABLE, Backend, ConnectionKernels

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_check.py"
needs_gxx = pytest.mark.skipif(missing_tool("g++") is not None, reason=str(missing_tool("g++")))


@pytest.fixture(scope="module")
def gpu_check() -> Any:
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_ends_well(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(SCRIPT), "--output", str(tmp_path / "results")],
        capture_output=True,
        text=True,
        check=False,
    )
    said = "gpu_check: torch sees no CUDA device here, so there is nothing to check.\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")
    assert not (tmp_path / "results").exists()


def test_steps_fit_ten_minutes(gpu_check: Any) -> None:
    assert sum(gpu_check.STEPS.values()) < 600


STEPS = """
import sys, time
step = sys.argv[1]
if step != "silent":
    print('{"step": "%s", "status": "passed"}' % step, flush=True)
if step == "slow":
    time.sleep(60)
if step == "broken":
    raise RuntimeError("the cause")
"""


def test_every_step_leaves_a_record(
    gpu_check: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.jsonl"
    steps = {"good": 60, "slow": 3, "broken": 60, "silent": 60, "last": 60}
    failures = gpu_check.run_all(steps, [sys.executable, "-c", STEPS], results)
    records = [json.loads(line) for line in results.read_text().splitlines()]
    # What a step had found before it was killed is kept.
    assert [(r["step"], r["status"]) for r in records] == [
        ("good", "passed"),
        ("slow", "passed"),
        ("slow", "failed"),
        ("broken", "passed"),
        ("broken", "failed"),
        ("silent", "failed"),
        ("last", "passed"),
    ]
    assert failures == 3
    assert records[2]["reason"] == "it took more than 3 s"
    assert "the cause" in records[4]["reason"]
    assert "last: passed" in capsys.readouterr().out


def test_a_missing_tool_is_skipped_with_the_reason(
    gpu_check: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    for step, tool in {"memcheck": "compute-sanitizer", "profile": "ncu", "build": "nvcc"}.items():
        assert gpu_check.run_step(step, Path("unused")) == 0
        record = json.loads(capsys.readouterr().out)
        assert record == {"step": step, "status": "skipped", "reason": f"no {tool} on PATH"}


@needs_gxx
def test_values_are_compared_and_a_wrong_one_fails(gpu_check: Any, emulated: Emulated) -> None:
    ops = torch.ops.hf_qrnn_emulated
    shapes = [(2, 37, 3)]
    records = list(gpu_check.values(ops.pool_forward, ops.pool_backward, "cpu", shapes))
    assert [(r["pooling"], r["status"], r["checked"]) for r in records] == [
        ("f", "passed", 8),
        ("fo", "passed", 8),
        ("ifo", "passed", 8),
    ]

    def wrong(*arguments: Any) -> tuple[torch.Tensor, ...]:
        grads = ops.pool_backward(*arguments)
        grads[0].view(-1)[0] = float("nan")
        return grads

    for record in gpu_check.values(ops.pool_forward, wrong, "cpu", shapes):
        assert record["status"] == "failed"
        assert "grad_gates" in record["reason"]


@needs_gxx
def test_connections_are_compared_and_a_wrong_one_fails(
    gpu_check: Any, emulated: Emulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    ops = torch.ops.hf_qrnn_emulated
    asked: list[str] = []

    def kernels_by(backward: Any) -> Any:
        def kernels(device: torch.device) -> Any:
            asked.append(os.environ[VARIABLE])
            return ConnectionKernels(ops.connect_forward, backward)

        return kernels

    def wrong(*arguments: Any) -> tuple[torch.Tensor, ...]:
        grads = ops.connect_backward(*arguments)
        if grads[2].numel():
            grads[2][0] = float("nan")
        return grads

    # Those with many rows take their time here.
    monkeypatch.setattr(connecting, "FEW", [c for c in connecting.FEW if c.shape[1] < 50])
    reasons = {"native": None, "triton": "no Triton"}
    monkeypatch.setattr(gpu_check, "unavailable", lambda name, device: reasons[name])
    monkeypatch.setattr(gpu_check, "connection_kernels", kernels_by(ops.connect_backward))
    native, triton = gpu_check.connections(device="cpu")
    assert (native["backend"], native["status"], native["reason"]) == ("native", "passed", None)
    assert 0.01 < native["worst_over_tolerance"] <= 1
    skipped = {"status": "skipped", "reason": "no Triton", "backend": "triton"}
    assert triton == skipped
    monkeypatch.setattr(gpu_check, "connection_kernels", kernels_by(wrong))
    (record,) = gpu_check.connections(("native",), "cpu")
    assert record["status"] == "failed"
    assert "grad_weight" in record["reason"]
    assert asked == ["compiled", "compiled"]  # the alias that every release knows


def test_every_step_goes_to_its_function(
    gpu_check: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def replace(name: str) -> None:
        monkeypatch.setattr(gpu_check, name, lambda *given: iter([(name, *given)]))

    plain = ["environment", "library", "profile"]
    for name in (
        *plain, "build", "goals", "gpu_tests", "sanitizer", "benchmark", "connections", "values",
        "hard_cases", "smoke",
    ):  # fmt: skip
        replace(name)
    monkeypatch.setattr(gpu_check, "operations", lambda: ("compiled", "backward"))
    monkeypatch.setattr(gpu_check, "triton_operations", lambda: ("triton", "backward"))
    went = {}
    for step in [*gpu_check.STEPS, "smoke"]:
        (went[step],) = gpu_check.records_of(step, tmp_path)
    # A benchmark's step must name one that there is, and options that it knows.
    for step in ("pooling", "layer", "convolution"):
        function, name, *options = went.pop(step)
        assert (function, name) == ("benchmark", f"bench_{step}")
        chosen = gpu_check._benchmarks(name).make_parser().parse_args(options)
        assert (chosen.device, chosen.seconds) == ("cuda", 0.05)
    tools = ["memcheck", "racecheck", "initcheck", "synccheck"]
    assert went == {
        **{step: (step,) for step in plain},
        **{step: (step, tmp_path) for step in ("build", "goals")},
        **{step: ("sanitizer", step) for step in tools},
        **{step: (step, "compiled", "backward") for step in ("values", "hard_cases", "smoke")},
        "connect": ("connections",),
        "pytest": ("gpu_tests",),
        "triton": ("values", "triton", "backward"),
    }


def test_the_tests_that_want_a_gpu_are_all_run(
    gpu_check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    assert [record["status"] for record in gpu_check.gpu_tests()] == ["passed"]
    mark = ".".join(("pytest", "mark", "gpu"))  # in pieces, or this file had one too
    tests = (SCRIPT.parents[1] / "tests").rglob("test_*.py")
    wanted = {str(path) for path in tests if mark in path.read_text(encoding="utf-8")}
    assert {part for part in commands[0] if part.endswith(".py")} == wanted


@needs_gxx
def test_triton_is_called_as_the_library_is(
    gpu_check: Any, emulated: Emulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In Triton's place kernels that are called by a kind's name, and that compute: a number of
    # another kind, or an argument in another place, gives other values.
    def by_name(operation: Any, num_options: int) -> Any:
        def call(*arguments: Any) -> Any:
            kind, *options = arguments[-num_options:]
            number = kernels.POOLING_NUMBERS[kind]
            return operation(*arguments[:-num_options], number, *options)

        return call

    ops = torch.ops.hf_qrnn_emulated
    monkeypatch.setattr(gpu_check, "unavailable", lambda *_: None)
    fake = Backend("triton", by_name(ops.pool_forward, 5), by_name(ops.pool_backward, 3))
    monkeypatch.setattr(gpu_check, "backend_named", lambda name: fake)
    records = gpu_check.values(*gpu_check.triton_operations(), "cpu", [(2, 37, 3)])
    assert [r["status"] for r in records] == ["passed"] * 3
    monkeypatch.setattr(gpu_check, "unavailable", lambda *_: "no Triton")
    with pytest.raises(gpu_check.SkippedError, match="no Triton"):
        gpu_check.triton_operations()


def test_benchmarks_are_steps_and_goals_are_judged(gpu_check: Any, tmp_path: Path) -> None:
    options = ["--grid", "smoke", "--threads", "1", "--mode", "forward", "--seconds", "0"]
    records = list(gpu_check.benchmark("bench_layer", *options))
    assert {x["status"] for x in records} == {"measured"}
    assert [x["batch"] for x in records if x["bench"] == "layer"] == [1, 2]
    cell: dict[str, Any] = {
        "bench": "layer",
        "device": "cuda",
        "peer": "nn.LSTM A",
        "timing": "graph",
    }
    cell |= {"mode": "forward", "batch": 8, "length": 512, "ratio": 100.0, "paper_ratio": 16.9}
    cell |= {"hidden": 320, "dtype": "bfloat16"}
    lines = [{"step": "values", "status": "passed"}, {"step": "layer", **cell}]
    text = "a warning of somebody's\n" + "\n".join(map(json.dumps, lines))
    (tmp_path / "gpu_check.jsonl").write_text(text)
    *verdicts, rest = gpu_check.goals(tmp_path)
    assert [(x["name"], x["met"]) for x in verdicts] == [
        ("GPU layer forward against A, the paper's ratio, 8x512", True),
        ("GPU layer forward against A, graph, 8x512", False),
    ]
    assert "GPU layer over GEMM and byte floor" in rest["unmeasured"]
    skipped = [{"bench": "pooling", "skipped": "no Triton"}]
    module = gpu_check._benchmarks("bench_pooling")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "measure", lambda options: iter(skipped))
        (record,) = gpu_check.benchmark("bench_pooling")
    assert (record["status"], record["reason"]) == ("skipped", "no Triton")
