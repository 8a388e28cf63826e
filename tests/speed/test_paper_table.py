"""The paper's table and `hf-qrnn bench`: both layers of a cell, the time limit."""

import re

import pytest
import torch

from hf_qrnn.cli.main import main
from hf_qrnn.layer import QRNN
from hf_qrnn.speed import paper_table as bench
from hf_qrnn.speed.paper_table import (
    Cell,
    compare,
    compare_cells,
    layer_call,
    paper_speedup,
    speed_table,
)
from hf_qrnn.speed.timing import Timing

TINY = ((2, 3), (1, 4))


def test_paper_table_has_its_thirty_cells() -> None:
    assert len(bench.PAPER_CELLS) == 30
    # Three figures that the paper's text and picture name.
    assert paper_speedup(8, 512) == 16.9
    assert paper_speedup(8, 32) == 5.5
    assert paper_speedup(256, 512) == 1.3
    assert paper_speedup(8, 33) is None
    assert paper_speedup(1, 32) is None
    assert set(bench.QUICK_CELLS) < set(bench.PAPER_CELLS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["qrnn_call", "lstm_call"])
def test_calls_compute_what_they_say(name: str, dtype: str) -> None:
    cell = Cell(2, 3, dtype, hidden_size=4)
    output, _ = getattr(bench, name)(cell)()
    assert sorted(output.shape) == [2, 3, 4]
    assert output.dtype == bench.DTYPES[dtype]
    assert not output.requires_grad
    grads = getattr(bench, name)(Cell(2, 3, dtype, hidden_size=4, backward=True))()
    # Of the input and of every parameter, none of them left out.
    assert len(grads) == {"qrnn_call": 3, "lstm_call": 5}[name]
    assert all(grad.abs().sum() > 0 for grad in grads)


def test_gradients_are_those_of_the_layer() -> None:
    layer = QRNN(3, 3, batch_first=True)
    torch.manual_seed(1)
    found = layer_call(layer, (2, 4, 3), "float64", "cpu", backward=True)()
    torch.manual_seed(1)
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    output = layer(x)[0]
    output.backward(torch.randn_like(output))
    wanted = [x.grad, *(parameter.grad for parameter in layer.parameters())]
    torch.testing.assert_close(list(found), wanted)  # type: ignore[call-overload]


def test_ratio_is_lstm_over_qrnn() -> None:
    assert bench.Comparison(Timing((1.0,)), Timing((3.0,))).ratio == 3.0
    found = compare(Cell(1, 2, hidden_size=4), seconds=0.0)
    assert len(found.qrnn.seconds) == len(found.lstm.seconds) == 5
    assert found.ratio > 0


def test_small_cells_come_first_and_late_ones_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[tuple[int, int]] = []

    def slow(cell: Cell, **options: object) -> bench.Comparison:
        order.append((cell.batch, cell.length))
        return bench.Comparison(Timing((50.0,)), Timing((50.0,)))

    monkeypatch.setattr(bench, "compare", slow)
    done: list[int] = []
    found = compare_cells([(8, 4), (1, 2), (2, 2)], seconds=30.0, on_cell=lambda: done.append(1))
    # 600 s for two steps, by the first cell: nothing else fits into what is left of 30.
    assert order == [(1, 2)]
    assert found == {(1, 2): 1.0}
    assert len(done) == 3


def test_table_says_what_was_measured_and_what_not() -> None:
    text = speed_table({(8, 32): 1.234, (3, 32): 2.0}, [(8, 32), (8, 64), (3, 32)])
    assert [line.split() for line in text.splitlines()] == [
        ["batch", "\\", "T", "32", "64"],
        ["3", "2.00", "-"],
        ["8", "1.23", "(5.5)", "-", "(8.8)"],
    ]


@pytest.mark.parametrize("arguments", [["--minutes", "2"], ["--quick"]])
def test_command_prints_the_table(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "PAPER_CELLS", TINY)
    monkeypatch.setattr(bench, "QUICK_CELLS", TINY[:1])
    before = torch.get_num_threads()
    assert main(["bench", "--device", "cpu", "--threads", "1", *arguments]) == 0
    output = capsys.readouterr().out
    assert torch.get_num_threads() == before
    head, how, *table = output.splitlines()
    assert re.search(r"1 threads; float32; pooling backend (native|torch); torch ", head)
    assert "320 units" in how
    assert len(table) == (2 if "--quick" in arguments else 3)
    assert re.fullmatch(r"\s*2\s+(\d+\.\d\d)(\s+-)?", table[-1])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--dtype", "int8"], "`--dtype` must be one of float32, bfloat16, float16, float64"),
        (["--threads", "0"], "`--threads` must be at least 1, but is 0."),
        (["--minutes", "0"], "`--minutes` must be above 0, but is 0.0."),
        (["--device", "tpu9"], "`--device` must be one that computes in float32 here"),
        (["--minutes", "1", "--quick"], "not allowed with argument"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert sentence in captured.err
