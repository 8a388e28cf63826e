"""benchmarks/goals.py and results.py: what is judged, what may be missed, what is printed."""

import json
from pathlib import Path
from typing import Any

import goals
import pytest
import results
from goals import Goal, check, judge, listed_misses

from hf_qrnn.speed.timing import Timing

EACH = Goal("each", {"bench": "layer"}, "ratio", 2.0, cells=((1, 4), (2, 8)))
MEAN = Goal("mean", {"bench": "layer"}, "ratio", 2.0, cells=((1, 4), (2, 8)), mean=True)
FLOOR = Goal("floor", {"bench": "gemm"}, "ratio", 1.15, at_most=True)
PAPER = Goal("paper", {"bench": "layer"}, "ratio", "paper_ratio", cells=((8, 32),))
GOALS = (EACH, MEAN, FLOOR, PAPER)


def layer(batch: int, length: int, ratio: float, **others: Any) -> results.Record:
    return {"bench": "layer", "batch": batch, "length": length, "ratio": ratio, **others}


def found(records: list[results.Record], *chosen: Goal) -> dict[str, tuple[float, bool]]:
    return {x.name: (x.value, x.met) for x in judge(records, chosen or GOALS).verdicts}


# ------------------------------------------------------------------ the goals themselves


def test_every_goal_has_a_name_of_its_own_and_a_bound() -> None:
    keys = [(goal.name, goal.cells) for goal in goals.GOALS]
    assert len(set(keys)) == len(keys)
    for goal in goals.GOALS:
        assert goal.where["device"] in {"cpu", "cuda"}
        assert not goal.mean or goal.cells


# ------------------------------------------------------------------ judging


def test_each_cell_is_judged_alone_and_the_mean_over_all() -> None:
    records = [layer(1, 4, 1.0), layer(2, 8, 4.0), layer(3, 3, 0.1)]
    assert found(records, EACH, MEAN) == {
        "each, 1x4": (1.0, False),
        "each, 2x8": (4.0, True),
        "mean": (pytest.approx(2.0), True),  # geometric: 1 and 4 make 2
    }


def test_a_mean_over_some_of_its_cells_is_none() -> None:
    judgement = judge([layer(1, 4, 9.0)], (EACH, MEAN))
    assert [x.name for x in judgement.verdicts] == ["each, 1x4"]
    assert judgement.unmeasured == ["each: 2x8", "mean: 2x8"]


def test_what_was_not_measured_is_named_and_not_judged() -> None:
    assert judge([], GOALS) == ([], ["each", "mean", "floor", "paper: 8x32"])
    skipped = {"bench": "gemm", "skipped": "there is no GPU"}
    assert "floor" in judge([skipped], GOALS).unmeasured


def test_upper_bounds_and_bounds_of_the_record() -> None:
    assert found([{"bench": "gemm", "ratio": 1.1}], FLOOR) == {"floor": (1.1, True)}
    assert found([{"bench": "gemm", "ratio": 1.2}], FLOOR) == {"floor": (1.2, False)}
    assert not found([layer(8, 32, 5.0, paper_ratio=5.5)], PAPER)["paper, 8x32"][1]
    assert found([layer(8, 32, 5.6, paper_ratio=5.5)], PAPER)["paper, 8x32"][1]


def test_no_number_meets_no_bound() -> None:
    assert not found([layer(1, 4, float("nan"))], EACH)["each, 1x4"][1]
    assert not found([{"bench": "gemm", "ratio": float("nan")}], FLOOR)["floor"][1]


def test_the_later_measurement_counts() -> None:
    assert found([layer(1, 4, 1.0), layer(1, 4, 3.0)], EACH) == {"each, 1x4": (3.0, True)}


def test_real_goals_concern_the_records_they_are_about() -> None:
    common = {"device": "cpu", "dtype": "float32", "threads": 1, "mode": "forward"}
    record = {**layer(128, 128, 1.2), **common, "peer": "nn.LSTM", "hidden": 320}
    assert list(found([record], *goals.GOALS)) == ["CPU layer forward, 128x128"]
    assert not found([{**record, "threads": 4}], *goals.GOALS)
    assert not found([{**record, "hidden": 16}], *goals.GOALS)
    model = {"bench": "translation", "peer": "nn.LSTM", "ratio": 1.0, "layers": 4, "hidden": 320}
    name = "CPU translation characters per second, threads 1"
    assert list(found([common | model], *goals.GOALS)) == [name]
    assert not found([common | model | {"layers": 2}], *goals.GOALS)
    assert not found([{**record, "dtype": "bfloat16"}], *goals.GOALS)
    pooling = {**common, "bench": "pooling", "backend": "compiled", "of_copy": 0.5}
    pooling["beyond_caches"] = True
    sizes = {"batch": 16, "length": 512, "hidden": 320}
    assert found([pooling | sizes], *goals.GOALS) == {
        "CPU pool forward of copy, 16x512": (0.5, False)
    }
    assert not found([pooling | sizes | {"beyond_caches": False}], *goals.GOALS)
    many = pooling | {"device": "cuda", "dtype": "bfloat16", "of_copy": 0.95}
    many |= {"batch": 32, "length": 1024, "hidden": 1024}
    assert list(found([many], *goals.GOALS)) == [
        "GPU pool forward of copy, many channels, 32x1024x1024"
    ]
    assert not found([many | {"length": 512}], *goals.GOALS)


# ------------------------------------------------------------------ listed misses


ENTRY = """
## Slow somewhere

- `each, 1x4`

Cause: the copy of the windows
costs as much as the product.
"""


def test_misses_are_read_from_a_page() -> None:
    assert listed_misses(ENTRY, GOALS) == {"each, 1x4"}
    assert listed_misses(ENTRY.replace("- `each, 1x4`", "each, 1x4"), GOALS) == set()
    with pytest.raises(ValueError, match="none is called 'nothing, 1x4'"):
        listed_misses(ENTRY.replace("each, 1x4", "nothing, 1x4"), GOALS)


def test_own_list_of_misses_names_goals() -> None:
    assert "CPU layer forward, one row, 1x32" in listed_misses(goals.MISSES.read_text())


@pytest.mark.parametrize(
    ("ratio", "text", "status", "sentence"),
    [
        (3.0, "", 0, "1 of 1 measured goals met, 0 missed and not listed"),
        (1.0, "", 1, "0 of 1 measured goals met, 1 missed and not listed"),
        (1.0, ENTRY, 0, "(goal >= 2); the cause is in misses.md"),
        (3.0, ENTRY, 0, "no longer a miss, take it out of the list: each, 1x4"),
    ],
)
def test_check(
    ratio: float,
    text: str,
    status: int,
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    misses = tmp_path / "misses.md"
    misses.write_text(text)
    assert check([layer(1, 4, ratio)], misses, GOALS) == status
    output = capsys.readouterr().out
    assert sentence in output
    assert "not measured: floor" in output


def test_check_of_nothing_proves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    misses = tmp_path / "misses.md"
    misses.write_text("")
    assert check([layer(3, 3, 9.0)], misses, GOALS) == 1
    assert "nothing is proven" in capsys.readouterr().out


# ------------------------------------------------------------------ records and tables


def test_figures_of_two_timings() -> None:
    record = results.versus(
        Timing((1.0, 2.0, 4.0), (1.0, 1.0, 2.0)), Timing((2.0, 6.0, 8.0), (3.0, 3.0, 6.0))
    )
    assert record == {
        "ms": 2000.0, "ms_min": 1000.0, "peer_ms": 6000.0, "peer_ms_min": 2000.0, "rounds": 3,
        "ratio": 2.0, "ratio_of_minima": 2.0, "ratio_of_cpu_time": 3.0,
    }  # fmt: skip
    assert "ratio_of_cpu_time" not in results.versus(Timing((1.0,)), Timing((1.0,)))


def test_a_record_is_on_disk_as_soon_as_it_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "folder" / "out.jsonl"
    kept = results.Results(path)
    kept.add(layer(1, 4, 2.5))
    assert [json.loads(line) for line in path.read_text().splitlines()] == [layer(1, 4, 2.5)]
    kept.add({"bench": "pooling", "peer": "SRU", "skipped": "not installed"})
    assert results.read(path) == kept.records
    assert capsys.readouterr().out == (
        "layer, 1x4, ratio 2.5\nskipped pooling SRU: not installed\n"
    )


def test_tables() -> None:
    common = {"peer": "nn.LSTM", "device": "cpu", "threads": 2, "mode": "forward"}
    records = [
        {"bench": "environment", "cpu": "C", "cpu_capability": "AVX2", "cores": 2, "torch": "1",
         "hf_qrnn": "0", "date": "today"},
        layer(8, 32, 1.234, paper_ratio=5.5, **common),
        layer(1, 64, 4.0, **common),
        {"bench": "gemm", "batch": 8, "length": 32, "ratio": 1.1, "peer": "floor",
         "device": "cuda"},
        {"bench": "pooling", "backend": "compiled", "mode": "forward", "batch": 2, "length": 3,
         "hidden": 4, "ms": 0.5, "of_copy": 0.7},
        {"bench": "pooling", "peer": "SRU", "mode": "forward", "ratio": 2.0},
        {"bench": "translation", "peer": "nn.LSTM", "device": "cpu", "ratio": 1.5},
        {"bench": "kernels", "peer": "nn.LSTM A", "kernels": ["persist_lstm"]},
        {"bench": "pooling", "peer": "fla", "skipped": "no module"},
    ]  # fmt: skip
    assert (
        results.markdown(records)
        == """\
C (AVX2), 2 cores, torch 1, hf_qrnn 0, today.

QRNN against nn.LSTM: cpu, forward, 2 threads

| batch \\ T | 32 | 64 |
| --- | --- | --- |
| 1 |  | 4.00 |
| 8 | 1.23 (5.5) |  |

QRNN over floor: cuda

| batch \\ T | 32 |
| --- | --- |
| 8 | 1.10 |

| backend | direction | B x T x H | ms | of copy |
| --- | --- | --- | --- | --- |
| compiled | forward | 2 x 3 x 4 | 0.5 | 0.7 |

| peer | mode | ratio |
| --- | --- | --- |
| SRU | forward | 2.0 |

| device | peer | ratio |
| --- | --- | --- |
| cpu | nn.LSTM | 1.5 |

- skipped pooling fla: no module

- nn.LSTM A: persist_lstm"""
    )
