"""benchmarks/gpu on a CPU: every step in a dry run, and that a wrong value is seen."""

import importlib
import os
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import connecting
import pytest
import torch
from cuda_emulation import Emulated, missing_tool
from gpu import generation, layers, machine, operations, pooling, report, tools, training, values
from gpu.plan import STEPS, WATCHED, Record, Setting, SkippedError, records_path
from gpu.running import Outcome, read_records
from gpu.step import run_step

from hf_qrnn import kernels
from hf_qrnn.model.backends_qrnn import VARIABLE, Backend, ConnectionKernels

ROOT = Path(__file__).parents[2]
needs_gxx = pytest.mark.skipif(missing_tool("g++") is not None, reason=str(missing_tool("g++")))
needs_library = pytest.mark.skipif(kernels.find().path is None, reason="no compiled library")


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(tmp_path / "out", tmp_path / "carried", tmp_path / "work", dry=True)


def walk(name: str, setting: Setting) -> list[Record]:
    """Run a step in this process as its own would, and return its records."""
    status = run_step(name, setting)
    records = read_records(records_path(setting.out, name), name)
    assert status == any(x["status"] == "failed" for x in records)
    assert {x["gpu"] for x in records} == {"none, a dry run on the CPU"}
    return records


def statuses(records: list[Record]) -> set[str]:
    return {x["status"] for x in records}


def on_path(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a tool of this name, a shell script, on PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


# ------------------------------------------------------------------ a


def test_environment_has_versions_and_rates(setting: Setting) -> None:
    versions, rates = walk("environment", setting)
    assert versions["torch"] == torch.__version__
    assert rates["copy_tb_per_second"] > 0
    assert rates["bf16_tflops"] > 0


@needs_library
def test_library_is_loaded_and_not_built_again(setting: Setting) -> None:
    (record,) = walk("library", setting)
    assert record["status"] == "passed"
    assert record["first_call_ms"] >= 0
    (record,) = walk("build", setting)
    assert (record["status"], record["reason"]) == ("skipped", "the carried library works")


def test_a_library_that_does_not_work_is_built(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "unavailable", lambda device: "no code for it")
    asked: list[Any] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        asked.append((command[1:], options["env"]["HF_QRNN_BUILD"]))
        return subprocess.CompletedProcess(command, len(asked) - 1, "path\n", "the cause")

    monkeypatch.setattr(machine.subprocess, "run", run)
    (record,) = machine.build(setting)
    assert (record["status"], record["path"]) == ("passed", "path")
    (record,) = machine.build(setting)
    assert (record["status"], record["reason"]) == ("failed", "the cause")
    assert asked[0] == ([str(ROOT / "hf_qrnn/kernels/build.py")], "cpu")


@needs_gxx
def test_values_are_compared_and_a_wrong_one_fails(setting: Setting, emulated: Emulated) -> None:
    records = walk("values", setting)
    assert [(x["pooling"], x["status"], x["checked"]) for x in records] == [
        ("f", "passed", 8),
        ("fo", "passed", 8),
        ("ifo", "passed", 8),
    ]
    right = operations.native(setting)

    def wrong(*arguments: Any) -> tuple[torch.Tensor, ...]:
        grads = right.backward(*arguments)
        grads[0].view(-1)[0] = float("nan")
        return grads

    for record in values.compare(right._replace(backward=wrong), "cpu", [(2, 37, 3)]):
        assert record["status"] == "failed"
        assert "grad_gates" in record["reason"]
    assert statuses(walk("smoke", setting)) == {"passed"}


def test_twenty_shapes_have_both_forms_on_both_sides() -> None:
    assert len(values.SHAPES) == 20
    assert len(values.SMOKE) == 6
    least, most = pooling.switch()
    for shapes in (values.SHAPES, pooling.FORM_SHAPES):
        sides = {(t >= least, b * h <= most) for b, t, h in shapes}
        assert {(True, True), (True, False), (False, True)} <= sides


@needs_gxx
def test_triton_is_called_as_the_library_is(
    setting: Setting, emulated: Emulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In Triton's place kernels that are called by a kind's name, and that compute: a number of
    # another kind, or an argument in another place, gives other values.
    def by_name(operation: Any, num_options: int) -> Any:
        def call(*arguments: Any) -> Any:
            kind, *options = arguments[-num_options:]
            number = kernels.POOLING_NUMBERS[kind]
            return operation(*arguments[:-num_options], number, *options)

        return call

    (record,) = walk("triton", setting)
    assert record["status"] == "skipped"
    ops = torch.ops.hf_qrnn_emulated
    monkeypatch.setattr(operations, "unavailable", lambda *_: None)
    fake = Backend("triton", by_name(ops.pool_forward, 5), by_name(ops.pool_backward, 3))
    monkeypatch.setattr(operations, "backend_named", lambda name: fake)
    records = values.compare(operations.triton(setting), "cpu", [(2, 37, 3)])
    assert [r["status"] for r in records] == ["passed"] * 3


def test_what_is_missing_is_skipped_with_the_reason(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    missing = {
        "memcheck": "compute-sanitizer",
        "racecheck": "compute-sanitizer",
        "initcheck": "compute-sanitizer",
        "synccheck": "compute-sanitizer",
        "profile": "ncu",
        "registers": "cuobjdump",
    }
    for step, tool in missing.items():
        (record,) = walk(step, setting)
        assert (record["status"], record["reason"]) == ("skipped", f"no {tool} on PATH")
    monkeypatch.setattr(operations.torch.ops, "hf_qrnn_emulated", types.SimpleNamespace())
    (record,) = walk("values", setting)
    assert (record["status"], record["reason"]) == ("skipped", "no g++ on PATH")


def test_an_error_of_a_step_is_a_record(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(setting: Setting) -> Any:
        yield {"status": "measured", "found": 1}
        raise MemoryError("no room")

    monkeypatch.setattr(machine, "environment", broken)
    first, second = walk("environment", setting)
    assert first["found"] == 1
    assert (second["status"], second["reason"]) == ("failed", "MemoryError: no room")


# ------------------------------------------------------------------ b, c


@needs_library
def test_pooling_is_measured_in_both_dtypes(setting: Setting) -> None:
    records = walk("pooling", setting)
    measured = {(x["dtype"], x["mode"]) for x in records if x.get("backend") == "compiled"}
    assert measured == {(d, m) for d in ("bfloat16", "float32") for m in ("forward", "backward")}


@needs_gxx
def test_both_forms_are_measured_and_the_switch_is_fitted(
    setting: Setting, emulated: Emulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = walk("forms", setting)
    assert statuses(records) == {"measured"}
    found = [x for x in records if x["bench"] == "form"]
    assert len(found) == 8  # two dtypes, shapes and directions
    assert {x["chosen"] for x in found} == {"split", "stream"}
    assert torch.ops.hf_qrnn_emulated.pool_form("") == "auto"  # as it was
    with pytest.raises(RuntimeError, match="`wanted` must be auto, stream or split, but is it"):
        torch.ops.hf_qrnn_emulated.pool_form("it")


@needs_gxx
def test_a_forced_form_is_the_one_that_runs(emulated: Emulated) -> None:
    choose = torch.ops.hf_qrnn_emulated.pool_form
    small, large, double = (1, 4, 40, 8), (1, 256, 640, 320), (0, 4, 40, 8)
    plans = {}
    for form in ("auto", "stream", "split"):
        assert choose(form) == form
        plans[form] = [emulated.plan(False, values.DTYPES[k[0]], *k[1:])[0] for k in
                       (small, large, double)]  # fmt: skip
    choose("auto")
    # float64 has no other form.
    assert plans == {"auto": [1, 0, 0], "stream": [0, 0, 0], "split": [1, 1, 0]}


def test_the_switch_is_where_the_other_form_wins() -> None:
    common = {"dtype": "bfloat16", "mode": "forward", "length": 512, "hidden": 1024}
    ratios = {2: 3.0, 16: 1.2, 32: 0.9, 64: 0.5}
    records = [{**common, "batch": b, "ratio": r, "is_faster": b != 16} for b, r in ratios.items()]
    (fit,) = pooling.refit(records)
    assert (fit["split_up_to"], fit["stream_from"]) == (16 * 1024, 32 * 1024)
    assert fit["chosen_is_faster"] == "3 of 4"


RESOURCES = """
Fatbin elf code:
 Function _ZN7hf_qrnn3gpu13split_forwardI:
  REG:128 STACK:0 SHARED:16384 LOCAL:0 CONSTANT[0]:700 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function _ZN7hf_qrnn3gpu15stream_backwardI:
  REG:80 STACK:16 SHARED:49152 LOCAL:0 CONSTANT[0]:700 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


@needs_library
def test_registers_say_how_many_warps_find_room(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path(tmp_path / "bin", "cuobjdump", f"cat <<'END'{RESOURCES}END", monkeypatch)
    (record,) = walk("registers", setting)
    split, stream = record["kernels"]
    # 65,536 registers / (128 x 256 threads): two blocks of eight warps.
    assert (split["registers"], split["shared"], split["warps"]) == (128, 16384, 16)
    # 227 KB / 49 KB: four blocks of two warps.
    assert (stream["stack"], stream["warps"]) == (16, 8)
    assert record["with_stack"] == [stream["kernel"]]


@needs_library
def test_layers_are_measured(setting: Setting) -> None:
    records = walk("layer", setting)
    assert statuses(records) == {"measured"}
    assert {"layer", "loop", "translation"} <= {x["bench"] for x in records}


class Gru(torch.nn.Module):
    """A stand-in for another package's layer."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(size, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).cumsum(1)


def test_layers_of_other_packages_are_measured_where_they_are(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = walk("peers", setting)
    assert first["reason"] == "ModuleNotFoundError: No module named 'minGRU_pytorch'"
    assert "ParaGRU" in second["reason"]
    fake = types.ModuleType("minGRU_pytorch")
    monkeypatch.setattr(fake, "minGRU", Gru, raising=False)
    monkeypatch.setitem(sys.modules, "minGRU_pytorch", fake)
    found = next(layers.peers(setting))
    assert (found["peer"], found["mode"]) == ("minGRU-pytorch", "forward+backward")
    assert found["ratio"] > 0


# ------------------------------------------------------------------ d, e


def test_a_run_says_its_speed_and_its_score(setting: Setting) -> None:
    records = walk("modern", setting)
    assert statuses(records) == {"measured"}, records[-1]
    assert "generated text: " in records[0]["about"]
    assert records[-2]["chars_per_second"] > 0
    assert records[-2]["update"] == records[-1]["updates"] == 4
    assert 0 <= records[-1]["bleu"] <= 100
    assert {x["data"] for x in records} == {"generated"}


def test_a_run_with_graphs_is_told_apart(setting: Setting) -> None:
    records = walk("graphs", setting)
    assert {x["preset"] for x in records} == {"modern_graphs"}
    assert records[-1]["updates"] == 4


def test_only_a_gpu_is_asked_for_graphs(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []

    def run(setting: Setting, preset: str, options: list[str], **more: Any) -> Any:
        given.append(options)
        return iter([])

    monkeypatch.setattr(training, "_run", run)
    assert list(training.graphs(setting)) == []
    assert list(training.graphs(replace(setting, dry=False))) == []
    assert ["--cuda_graphs" in options for options in given] == [False, True]


def test_a_run_that_breaks_says_so(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.sys, "executable", "false")
    assert walk("paper", setting)[-1]["reason"].startswith("train_translation.py ended with 1")


def test_data_that_were_carried_are_taken(setting: Setting) -> None:
    folder = setting.carried / training.FOLDER
    folder.mkdir(parents=True)
    for name in training.SPLITS.values():
        for side in ("de", "en"):
            (folder / f"{name}.{side}.xz").write_bytes(b"")
    data = training.Data(setting)
    assert (data.name, data.about) == ("multi30k", "")
    assert data.flags()[:2] == ["--train_source", str(folder / "train.de.xz")]
    (folder / "val.en.xz").unlink()
    assert "val.en.xz" in training.Data(setting).about


def test_the_control_trains_on_the_same_text(setting: Setting) -> None:
    record = walk("lstm", setting)[-1]
    assert (record["status"], record["preset"]) == ("measured", "lstm")
    assert record["chars_per_second"] > 0
    assert record["loss"] > 0


def test_generation_is_measured_each_way(setting: Setting) -> None:
    records = walk("generation", setting)
    ways = [x["way"] for x in records]
    assert ways == ["eager", "generate, dynamic", "generate, static"]
    assert all(x["ms_per_step"] > 0 for x in records)


def test_a_step_of_decoding_is_generate_s(setting: Setting) -> None:
    model = generation.model_of(setting)
    ids = torch.randint(4, 187, (3, 8))
    step = generation.step_of(model, ids)
    found = [step().clone() for _ in range(3)]
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    model.generation_config.eos_token_id = None
    wanted = model.generate(ids, **options)
    assert torch.equal(torch.cat(found, 1), wanted[:, 2:5])


# ------------------------------------------------------------------ f


@needs_gxx
def test_hard_cases_pass_and_see_what_is_wrong(
    setting: Setting, emulated: Emulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = walk("hard_cases", setting)
    assert [x["status"] for x in records] == ["passed"] * 6
    right, calls = operations.native(setting), []

    def drifting(*arguments: Any) -> tuple[torch.Tensor, ...]:
        calls.append(1)
        h, *rest = right.forward(*arguments)
        return (h + len(calls), *rest)

    wrong = right._replace(forward=drifting)
    monkeypatch.setattr(operations, "native", lambda setting: wrong)
    assert {x["status"] for x in values.hard_cases(setting)} == {"failed"}


@needs_gxx
def test_connections_are_compared_and_a_wrong_one_fails(
    setting: Setting, emulated: Emulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    ops = torch.ops.hf_qrnn_emulated
    asked: list[str] = []

    def kernels_by(backward: Any) -> Any:
        def found(device: torch.device) -> Any:
            asked.append(os.environ[VARIABLE])
            return ConnectionKernels(ops.connect_forward, backward)

        return found

    def wrong(*arguments: Any) -> tuple[torch.Tensor, ...]:
        grads = ops.connect_backward(*arguments)
        if grads[2].numel():
            grads[2][0] = float("nan")
        return grads

    # Those with many rows take their time here.
    monkeypatch.setattr(connecting, "FEW", [c for c in connecting.FEW if c.shape[1] < 50])
    reasons = {"native": None, "triton": "no Triton"}
    monkeypatch.setattr(values, "unavailable", lambda name, device: reasons[name])
    monkeypatch.setattr(values, "connection_kernels", kernels_by(ops.connect_backward))
    native, triton = values.connections(setting)
    assert (native["backend"], native["status"], native["reason"]) == ("native", "passed", None)
    assert 0.01 < native["worst_over_tolerance"] <= 1
    skipped = {"status": "skipped", "reason": "no Triton", "backend": "triton"}
    assert triton == skipped
    monkeypatch.setattr(values, "connection_kernels", kernels_by(wrong))
    (record,) = values.connections(setting, ("native",))
    assert record["status"] == "failed"
    assert "grad_weight" in record["reason"]
    assert asked == ["compiled", "compiled"]  # the alias that every release knows


def test_sanitizers_watch_the_small_shapes(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "asked"
    on_path(
        tmp_path / "bin", "compute-sanitizer",
        f'echo "$@" >> {log}; [ $2 = racecheck ] && {{ echo a race; exit 9; }}\n'
        "[ $2 = initcheck ] && { echo Device not supported; exit 1; }; exit 0",
        monkeypatch,
    )  # fmt: skip
    found = {}
    for tool in ("memcheck", "racecheck", "initcheck", "synccheck"):
        (record,) = walk(tool, setting)
        found[tool] = record["status"], record["reason"]
    assert found["memcheck"] == found["synccheck"] == ("passed", None)
    assert found["racecheck"] == ("failed", "a race\n")
    assert found["initcheck"][0] == "skipped"
    line = log.read_text().splitlines()[0]
    assert line.startswith("--tool memcheck --error-exitcode 9 --kernel-name")
    assert "gpu_check.py --step smoke" in line
    assert line.endswith("--dry")
    on_path(tmp_path / "bin", "ncu", f'echo "$@" >> {log}; echo counters', monkeypatch)
    (record,) = walk("profile", setting)
    assert record["csv"] == "counters\n"
    assert "--clock-control none" in log.read_text().splitlines()[-1]


def test_the_tests_that_want_a_gpu_are_all_run(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(tools.subprocess, "run", run)
    assert [record["status"] for record in walk("pytest", setting)] == ["passed"]
    mark = ".".join(("pytest", "mark", "gpu"))  # in pieces, or this file had one too
    tests = (ROOT / "tests").rglob("test_*.py")
    wanted = {str(path) for path in tests if mark in path.read_text(encoding="utf-8")}
    assert {part for part in commands[0] if part.endswith(".py")} == wanted


# ------------------------------------------------------------------ the table


def test_every_step_has_a_function_and_a_walk() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    for name, step in (STEPS | WATCHED).items():
        assert callable(step.function()), name
        assert f'"{name}"' in source or f"values.{step.place.partition(':')[2]}(" in source, name


def test_the_table_ends_with_the_steps_and_has_the_goals(setting: Setting) -> None:
    setting.out.mkdir()
    cell: dict[str, Any] = {
        "bench": "layer", "device": "cuda", "peer": "nn.LSTM A", "timing": "graph",
        "mode": "forward", "batch": 8, "length": 512, "ratio": 100.0, "paper_ratio": 16.9,
        "hidden": 320, "dtype": "bfloat16",
    }  # fmt: skip
    decode = {"bench": "decode", "device": "cuda", "way": "graph", "layers": 4, "hidden": 320}
    decode |= {"batch": 1, "ms_per_step": 0.03, "tokens_per_second": 33_000, "say": "one row"}
    run = {"bench": "trained", "device": "cuda", "preset": "modern", "data": "multi30k"}
    run |= {"minutes": 1.5, "bleu": 32.0}
    gru = {"bench": "peer layer", "device": "cuda", "hidden": 320, "mode": "forward+backward"}
    gru |= {"peer": "minGRU-pytorch", "batch": 8, "length": 512, "ratio": 6.0, "memory_ratio": 0.6}
    lines = [importlib.import_module("json").dumps(x) for x in (cell, decode, run, gru)]
    (setting.out / "gpu_c.jsonl").write_text("a warning of somebody's\n" + "\n".join(lines))
    outcomes = [Outcome("library", "passed", 3.2), Outcome("layer", "failed", 60.0, "no\nroom")]
    said = report.write(setting.out, outcomes)
    assert "one row\n" in said
    for line in (
        "met    GPU layer forward against A, the paper's ratio, 8x512: 100 (goal >= 16.9)",
        "MISSED GPU layer forward against A, graph, 8x512: 100 (goal >= 150)",
        "met    GPU decoding of one row, ms a step, 1: 0.03 (goal <= 0.035)",
        "MISSED GPU Multi30k in two minutes, BLEU: 32 (goal >= 33)",
        "met    GPU layer forward+backward against minGRU-pytorch, 8x512: 6 (goal >= 5)",
        "MISSED GPU memory over minGRU-pytorch, 8x512: 0.6 (goal <= 0.5)",
        "not measured: GPU layer over GEMM and byte floor",
    ):
        assert line in said
    assert said.endswith("layer         failed        60  no room\n1 of 2 steps failed: layer")
    tables = (setting.out / "gpu_tables.md").read_text()
    assert "| minGRU-pytorch | 8 | 512 | 320 |" in tables
    assert "| graph | 1 |" in tables


def test_nothing_found_is_a_table_too(setting: Setting) -> None:
    setting.out.mkdir()
    said = report.write(setting.out, [])
    assert said.endswith("0 of 0 steps failed")
    with pytest.raises(SkippedError, match="one form"):
        pooling.forced(operations.Operations(max, max), "split")
