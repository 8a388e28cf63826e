"""benchmarks/bench_layer.py: end to end on tiny sizes, and its GPU parts on a CPU."""

import os
from pathlib import Path

import bench_layer
import goals
import pytest
import results
import torch
from benching import make_brief
from controls import LSTMTranslator
from goals import Goal

from hf_qrnn.model.backends_qrnn import VARIABLE
from hf_qrnn.speed.paper_table import PAPER_CELLS, Cell
from hf_qrnn.speed.timing import Call


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    make_brief(bench_layer, monkeypatch)


WHERE = {"bench": "layer", "peer": "nn.LSTM", "threads": 1, "dtype": "float32", "hidden": 16}
EASY = Goal("easy", {**WHERE, "mode": "forward"}, "ratio", 0.0)
HARD = Goal("hard", {**WHERE, "mode": "forward"}, "ratio", 1e9, cells=((2, 8),))


def run_layer(path: Path, *arguments: str) -> int:
    return bench_layer.main(["--grid", "smoke", "--output", str(path), *arguments])


def test_layers_end_to_end(
    brief: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, misses = tmp_path / "out.jsonl", tmp_path / "misses.md"
    both = ["--threads", "1", "--dtypes", "float32", "bfloat16"]
    misses.write_text("")
    monkeypatch.setattr(goals, "GOALS", (EASY,))
    assert run_layer(path, *both, "--check", "--misses", str(misses)) == 0
    table = capsys.readouterr().out
    assert "QRNN against nn.LSTM: cpu, bfloat16, forward+backward, eager, 1 thread" in table
    assert "2 of 2 measured goals met" in table
    records = results.read(path)
    assert [x["bench"] for x in records[:2]] == ["environment", "copy"]
    cells = [(x["bench"], x["dtype"], x["mode"], x["batch"]) for x in records if "batch" in x]
    ways = ["forward", "forward+backward"]
    assert cells == [
        *(("layer", "float32", way, batch) for way in ways for batch in (1, 2)),
        *(("loop", "float32", way, 2) for way in ways),
        *(("layer", "bfloat16", way, 2) for way in ways),
    ]
    assert all(x["ratio"] > 0 for x in records if "ratio" in x)
    characters = next(x for x in records if x["bench"] == "translation")
    assert characters["characters_per_second"] == pytest.approx(18e3 / characters["ms"], rel=0.01)

    # The file alone gives the same tables and verdicts, and a miss must be listed.
    monkeypatch.setattr(goals, "GOALS", (EASY, HARD))
    again = ["--table", str(path), "--check", "--misses", str(misses)]
    assert bench_layer.main(again) == 1
    output = capsys.readouterr().out
    assert "QRNN against LoopQRNN: cpu, float32, forward, eager, 1 thread" in output
    assert "MISSED hard, 2x8" in output
    misses.write_text("## It is hard\n\n- `hard, 2x8`\n")
    assert bench_layer.main(again) == 0
    misses.write_text("- `harder, 2x8`\n")
    with pytest.raises(SystemExit) as stopped:
        bench_layer.main(again)
    assert stopped.value.code == 2
    assert "none is called 'harder, 2x8'" in capsys.readouterr().err


def test_one_direction_and_several_threads(brief: None, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    before = torch.get_num_threads()
    assert run_layer(path, "--threads", "1", "2", "--mode", "forward") == 0
    assert torch.get_num_threads() == before
    found = {(x["threads"], x["mode"]) for x in results.read(path) if x["bench"] == "layer"}
    assert found == {(1, "forward"), (2, "forward")}


def test_grids_hold_the_cells_of_the_goals() -> None:
    grid = bench_layer.GRIDS["goals"]
    wanted = {"CPU": grid, "GPU": bench_layer.GPU_GOALS}
    for goal in goals.GOALS:
        cells = set(goal.cells or ())
        if goal.where["bench"] == "layer":
            half = goal.where.get("dtype") == "bfloat16"
            chosen = wanted[goal.name[:3]]
            assert cells <= set(chosen.half_cells if half else chosen.cells), goal.name
        if goal.where["bench"] == "loop":
            assert cells <= set(grid.loop_cells)
    assert set(PAPER_CELLS) == set(bench_layer.GRIDS["paper"].cells)
    # Acceptance is by the paper's grid, where the goals of nine cells are judged too.
    assert set(goals.GRID) <= set(PAPER_CELLS)
    sizes = grid.translation
    assert sizes is not None
    assert (sizes.num_layers, sizes.hidden_size, sizes.vocab_size) == (4, 320, 187)
    assert bench_layer.persistent_size(Cell(8, 32)) == 384


def test_gpu_cell_measures_both_lstms_eager_and_as_graphs(
    brief: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    captures: list[Call] = []

    def captured(call: Call) -> Call:
        captures.append(call)
        return call

    monkeypatch.setattr(bench_layer, "captured", captured)
    cell = Cell(8, 4, "float32", "cpu", hidden_size=16)
    records = list(bench_layer.gpu_cell(cell, 0.0, copy_rate=1e9))
    assert [(x["peer"], x["timing"]) for x in records] == [
        ("nn.LSTM A", "eager"),
        ("nn.LSTM B", "eager"),
        ("nn.LSTM A", "graph"),
        ("nn.LSTM B", "graph"),
        ("bare GEMM + byte floor", "graph"),
    ]
    assert len(captures) == 4
    floor = records[-1]
    assert floor["floor_ms"] == pytest.approx(1e3 * 4 * 4 * 8 * 4 * 16 / 1e9, rel=1e-3)
    total = floor["gemm_ms"] + floor["floor_ms"]
    assert floor["ratio"] == pytest.approx(floor["ms"] / total, rel=0.01)
    backward = Cell(4, 4, "float32", "cpu", backward=True, hidden_size=16)
    # Rows not in eights: nothing persists. With gradients there is no bare product to compare.
    assert list(bench_layer.gpu_calls(backward)) == ["qrnn", "nn.LSTM A"]
    monkeypatch.setattr(bench_layer, "kernel_names", lambda call: [type(call()).__name__])
    found = [(x["peer"], x["kernels"]) for x in bench_layer.cudnn_kernels(cell)]
    assert found == [("nn.LSTM A", ["tuple"]), ("nn.LSTM B", ["tuple"])]


def test_bare_product_is_that_of_the_layer() -> None:
    out = bench_layer.gemm_call(Cell(2, 3, hidden_size=4))()
    assert isinstance(out, torch.Tensor)
    assert out.shape == (6, 12)


@pytest.mark.parametrize("make", ["qrnn", "lstm"])
def test_training_steps_train(make: str) -> None:
    sizes = bench_layer.Translation(2, 5, 4, 16, 1, 11)
    model = bench_layer.qrnn_translator(sizes) if make == "qrnn" else LSTMTranslator(11, 16, 1)
    step = bench_layer.training_step(model, sizes, "cpu", "float32")
    losses: list[float] = []
    model.register_forward_hook(lambda module, args, output: losses.append(output.loss.item()))
    for _ in range(40):
        step()
    assert losses[-1] < 0.8 * losses[0]
    if make == "qrnn":  # oneDNN has no LSTM for autocast on every CPU
        bench_layer.training_step(model, sizes, "cpu", "bfloat16")()
        assert losses[-1] < losses[0]


@pytest.mark.parametrize("reason", [None, "not built"])
def test_translation_on_a_gpu_compares_triton_with_compiled(
    reason: str | None, brief: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = bench_layer.Translation(2, 5, 4, 8, 1, 11)
    forced: list[str | None] = []
    step = bench_layer.training_step

    def on_cpu(model: torch.nn.Module, sizes: bench_layer.Translation, *_: str) -> Call:
        call = step(model, sizes, "cpu", "float32")
        return lambda: (forced.append(os.environ.get(VARIABLE)), call() if not forced[-1] else 0)

    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(bench_layer, "training_step", on_cpu)
    monkeypatch.setattr(bench_layer, "unavailable", lambda *_: reason)
    records = list(bench_layer.translation(sizes, "float32", "cuda", 0.0))
    if reason is not None:
        assert [x.get("skipped") for x in records] == [reason, reason, None]
        return
    assert [(x["peer"], x["of"]) for x in records] == [("nn.LSTM", "qrnn"), ("compiled", "triton")]
    assert forced == [None, None, "compiled", "triton"] + forced[4:]
