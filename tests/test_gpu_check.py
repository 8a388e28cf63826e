"""scripts/gpu_check.py without a GPU: its bookkeeping, its comparison on emulated kernels."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda_emulation import Emulated, missing_tool

SCRIPT = Path(__file__).parent.parent / "scripts" / "gpu_check.py"
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
