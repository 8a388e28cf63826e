#!/usr/bin/env python
"""Time generate() with guesses that it checks (prompt lookup, an assistant) beside plain greedy.

    python benchmarks/bench_speculation.py --output benchmarks/results/bench_speculation_cpu.jsonl

Of the first sentences of a model's sample, as they are and each said four times in a row. Every
way must give greedy search's tokens, or nothing is timed; then all take turns in one run, and a
ratio is how many times as fast as greedy search. The assistant is the model itself, which guesses
every token right: no other can gain more by what it guesses, though a smaller one costs less.
"""

from __future__ import annotations

import argparse
import copy
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ending import end_process
from results import Results, versus
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import hf_qrnn  # noqa: F401  (registers the models)
from hf_qrnn.speed.timing import environment, interleave

BOX = Path(__file__).resolve().parents[1] / "models"
GREEDY = "greedy"


class WrongTokensError(Exception):
    """A way to search gives other tokens than greedy search."""


def read_texts(folder: Path, count: int) -> dict[str, list[str]]:
    """Read the first sources of a model's sample: as they are, and four times in a row."""
    rows = (folder / "sample.tsv").read_text(encoding="utf-8").splitlines()[:count]
    usual = [row.split("\t")[0] for row in rows]
    return {"usual": usual, "repeated": [" ".join([text] * 4) for text in usual]}


def ways(model: Any, guesses: int) -> dict[str, dict[str, Any]]:
    """List the ways to search, by name, as keywords of generate()."""
    return {
        GREEDY: {},
        "prompt lookup": {"prompt_lookup_num_tokens": guesses},
        "assistant": {"assistant_model": copy.deepcopy(model)},
    }


def search(model: Any, sources: list[torch.Tensor], given: dict[str, Any]) -> list[list[int]]:
    """Search for the target of each source, one after the other."""
    options = {"do_sample": False, "num_beams": 1, "max_new_tokens": 256}
    return [model.generate(ids, **options, **given)[0].tolist() for ids in sources]


def measure(model: Any, sources: list[torch.Tensor], guesses: int, seconds: float) -> list[Any]:
    """Compare tokens, then time; a record of each way but the plain one.

    Raises:
        WrongTokensError: If one gives other tokens.
    """
    calls, expected = {}, search(model, sources, {})
    for name, given in ways(model, guesses).items():
        calls[name] = partial(search, model, sources, given)
        if calls[name]() != expected:
            raise WrongTokensError(f"{name} must give greedy search's tokens, but gives others.")
    found = interleave(calls, seconds=seconds, min_rounds=3, warm=True)
    tokens = sum(len(ids) - 1 for ids in expected)
    return [
        {"bench": "speculation", "peer": GREEDY, "by": name, "tokens": tokens}
        | versus(found[name], found[GREEDY])
        for name in calls
        if name != GREEDY
    ]


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--model", type=Path, default=BOX / "de-en", help="folder with a sample (models/de-en)")
    add("--sentences", type=int, default=12, help="sentences of its sample (12)")
    add("--guesses", type=int, default=8, help="tokens that prompt lookup may guess at once (8)")
    add("--seconds", type=float, default=20.0, help="time budget of each kind of text (20)")
    add("--output", type=Path, default=Path("runs/bench_speculation.jsonl"), help="JSON lines")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = AutoModelForSeq2SeqLM.from_pretrained(options.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    results = Results(options.output)
    results.add({"bench": "environment", **environment(), "command": sys.argv[1:]})
    for kind, texts in read_texts(options.model, options.sentences).items():
        sources = [tokenizer(text, return_tensors="pt")["input_ids"] for text in texts]
        for record in measure(model, sources, options.guesses, options.seconds):
            results.add({**record, "texts": kind, "device": "cpu", "threads": 1})
    return 0


if __name__ == "__main__":
    end_process(main)
