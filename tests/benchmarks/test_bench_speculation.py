"""benchmarks/bench_speculation.py: end to end on a tiny model, and other tokens are an error."""

import json
import sys
from pathlib import Path
from typing import Any

import bench_speculation
import pytest
import torch
from bench_speculation import WrongTokensError, main, measure
from engine_models import saved


def test_every_way_is_timed_on_both_kinds_of_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "model", 0)
    (tmp_path / "model/sample.tsv").write_text("ab cd\tx\nefg.\ty\nnot read\tz\n")
    output = tmp_path / "found.jsonl"
    words = ["bench", "--model", str(tmp_path / "model"), "--sentences", "2", "--seconds", "0"]
    monkeypatch.setattr(sys, "argv", [*words, "--output", str(output)])
    assert main() == 0
    first, *records = [json.loads(line) for line in output.read_text().splitlines()]
    assert first["bench"] == "environment"
    assert first["command"] == sys.argv[1:]
    assert [(x["texts"], x["by"]) for x in records] == [
        (kind, way) for kind in ("usual", "repeated") for way in ("prompt lookup", "assistant")
    ]
    assert all(x["ratio"] > 0 and x["rounds"] == 3 and x["tokens"] > 0 for x in records)
    texts = bench_speculation.read_texts(tmp_path / "model", 2)
    assert texts["repeated"] == ["ab cd ab cd ab cd ab cd", "efg. efg. efg. efg."]


def test_other_tokens_are_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = saved(tmp_path, 0)

    def ways(*_: Any) -> dict[str, dict[str, Any]]:
        return {"greedy": {}, "prompt lookup": {"decoder_start_token_id": 9}}

    monkeypatch.setattr(bench_speculation, "ways", ways)
    with pytest.raises(WrongTokensError, match="prompt lookup must give greedy search's tokens"):
        measure(model, [torch.tensor([[5, 6, 1]])], 3, 0.0)
