"""benchmarks/bench_convolution.py: end to end on tiny sizes, and that it times no wrong values."""

from pathlib import Path

import bench_convolution
import pytest
import results
import torch
from bench_convolution import Operands, Size
from benching import make_brief

TINY = ("2x3x4x2", "2x5x4x3")


def test_ways_end_to_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_brief(bench_convolution, monkeypatch)
    path = tmp_path / "out.jsonl"
    arguments = ["--sizes", *TINY, "--threads", "1", "--output", str(path)]
    assert bench_convolution.main(arguments) == 0
    text = capsys.readouterr().out
    assert "against one product over windows: cpu, float32, forward+backward, threads 1" in text
    assert "| B x T x H, K | windows, ms | pairs | taps | conv2d | phases | onednn |" in text
    assert "| 2 x 5 x 4, 3 |" in text
    _, *records = results.read(path)
    assert all(x["ratio"] > 0 for x in records)
    found = {(x["kernel_size"], x["mode"]): set[str]() for x in records}
    for x in records:
        found[x["kernel_size"], x["mode"]].add(x["way"])
    both = {"taps", "conv2d"}
    assert found == {
        (2, "forward"): {"pairs", "phases", "onednn", *both},
        (2, "forward+backward"): {"pairs", *both},
        (3, "forward"): {"phases", "onednn", *both},  # pairs want an even filter
        (3, "forward+backward"): both,
    }


def test_wrong_values_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(x: Operands) -> torch.Tensor:
        return bench_convolution.by_windows(x) + 1

    monkeypatch.setitem(bench_convolution.DIFFERENTIABLE, "taps", wrong)
    with pytest.raises(AssertionError):
        list(bench_convolution.bench_size(Size(2, 3, 4, 2), "float32", "cpu", False, 0.0))


def test_table_of_a_file_measures_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text(
        '{"bench": "convolution", "way": "pairs", "device": "cuda", "dtype": "bfloat16", '
        '"mode": "forward", "threads": 1, "batch": 8, "length": 16, "hidden": 4, '
        '"kernel_size": 2, "ratio": 1.25, "ms": 1.0, "peer_ms": 1.25}\n'
    )
    assert bench_convolution.main(["--table", str(path)]) == 0
    text = capsys.readouterr().out
    assert "windows: cuda, bfloat16, forward\n\n| B x T x H, K | windows, ms | pairs |" in text
    assert "| 8 x 16 x 4, 2 | 1.25 | 1.25 |" in text
