"""benchmarks/bench_training.py: end to end on tiny sizes, and what its peers are."""

from pathlib import Path

import bench_products
import bench_training
import goals
import pytest
import results
import torch
from bench_training import Sizes, bare_products, make_batch, marian, modern, update
from benching import make_brief
from goals import Goal

ROOT = Path(__file__).parents[2]
TINY = Sizes(layers=1, hidden=16, rows=4, source=6, target=5)
EASY = Goal("easy", {"bench": "update", "dtype": "bfloat16"}, "over", 1e9, at_most=True)


def test_every_comparison_end_to_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_brief(bench_training, monkeypatch)
    monkeypatch.setattr(goals, "GOALS", (EASY,))
    path, misses = tmp_path / "out.jsonl", tmp_path / "misses.md"
    misses.write_text("")
    words = ["--plan", "smoke", "--output", str(path), "--seconds", "0"]
    more = ["--baseline", str(ROOT), "--memory", "--dtypes", "float32"]
    assert bench_training.main([*words, *more]) == 0
    found = [(x["bench"], x.get("peer")) for x in results.read(path)]
    assert found[0][0] == "environment"
    peers = ["products", "before, float32", "Marian", "nn.LSTM", "its first tenth"]
    assert [peer for _, peer in found[1:]] == peers
    words += ["--dtypes", "bfloat16", "--check", "--misses", str(misses)]
    assert bench_training.main(words) == 0
    assert "| update | bfloat16 | 1 |" in capsys.readouterr().out
    assert [x["peer"] for x in results.read(path)[1:]] == ["products", "Marian", "nn.LSTM"]


def test_memory_alone_is_held_beside_float32(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Worker:
        """Needs a hundred megabytes in the first update and ten more in each that follows."""

        def __init__(self, folder: Path, sizes: Sizes, dtype: str, role: str) -> None:
            assert role == "watch"
            self.factor = {"float32": 1, "bfloat16": 2}[dtype]
            self.lines: list[tuple[int, ...]] = []
            self.answers = 0

        def tell(self, line: str) -> None:
            self.lines.append(tuple(map(int, line.split())))

        def answer(self) -> tuple[float, float]:
            self.answers += 1
            assert self.answers <= len(self.lines)
            return self.factor * (90 + 10 * self.answers), 0.5

        def close(self) -> None:
            assert len(set(self.lines)) > 2

    monkeypatch.setattr(bench_training, "Worker", Worker)
    path = tmp_path / "out.jsonl"
    words = ["--plan", "smoke", "--memory_only", "--output", str(path)]
    assert bench_training.main(words) == 0
    *memory, over = results.read(path)[1:]
    assert [x["growth"] for x in memory] == [round(285 / 105, 3)] * 2
    assert [x["peak_mb"] for x in memory] == [290, 580]
    assert (over["dtype"], over["peer"], over["over"]) == ("bfloat16", "float32", 2.0)


def test_bare_products_are_those_of_the_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three for each matrix that is multiplied, but for those whose input wants no gradient."""
    shapes = []
    mm, bmm = torch.mm, torch.bmm
    monkeypatch.setattr(torch, "mm", lambda a, b: shapes.append((*a.shape, b.shape[1])))
    monkeypatch.setattr(torch, "bmm", lambda a, b: shapes.append((*a.shape, b.shape[2])))
    bare_products(modern(TINY), make_batch(TINY), "float32")()
    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(torch, "bmm", bmm)
    multiplied = sum(len(shape) == 3 for shape in shapes)
    # Gates of two directions and of the decoder, V h~, keys and values, query, out, vocabulary.
    assert multiplied == 3 * 8
    # Scores and context of four heads: one product forward and two backward each.
    assert sum(len(shape) == 4 for shape in shapes) == 3 * 2


def test_the_transformer_has_as_many_parameters() -> None:
    number = sum(p.numel() for p in modern(Sizes()).parameters())
    theirs = sum(p.numel() for p in marian(Sizes(), number).parameters())
    assert abs(theirs / number - 1) < 0.02


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_update_learns(dtype: str) -> None:
    torch.manual_seed(0)
    model, batch = modern(TINY), make_batch(TINY)
    before = model(**batch).loss.item()
    step = update(model, batch, dtype)
    for _ in range(30):
        step()
    assert model.eval()(**batch).loss.item() < before


def test_products_end_to_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_brief(bench_products, monkeypatch)
    monkeypatch.setattr(bench_products, "SHAPES", ((8, 5, 6),))
    path = tmp_path / "out.jsonl"
    assert bench_products.main(["--output", str(path)]) == 0
    assert "| 1 | 8 x 5 x 6 | gradient of the weight |" in capsys.readouterr().out
    records = results.read(path)[1:]
    assert [x["mode"] for x in records] == [name for name, *_ in bench_products.products(8, 5, 6)]


def test_all_three_products_are_the_layers() -> None:
    """Each x by a weight, turned, is what autograd computes of the layer."""
    torch.manual_seed(0)
    (_, x, weight), (_, grad, _), _ = made = list(bench_products.products(4, 5, 6))
    x.requires_grad_()
    weight.requires_grad_()
    (x @ weight.t()).backward(grad)
    wanted = [x @ weight.t(), x.grad, weight.grad]
    for (_, a, b), product in zip(made, wanted, strict=True):
        torch.testing.assert_close(a @ b.t(), product)
