#!/usr/bin/env python
"""Put a trained model into `models/`, the box that comes with the repository.

    python scripts/ship_model.py --run runs/cmudict --name pronounce-en --sample test.tsv
    python scripts/ship_model.py --refresh

The first command saves the run's best model in half precision, with its tokenizer, its card and its
numbers, and a sample that a test scores again: the first lines of a table of sources and targets,
with the error rates of the saved model on it. The second writes the code that lies beside the
weights anew, after a change in `hf_qrnn/model`: a folder of the box is complete, so that it can be
copied, loaded and pushed as any other.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer

from hf_qrnn.data.flags import typed
from hf_qrnn.data.reading import read_lines
from hf_qrnn.metrics.edits import token_error_rate, word_error_rate
from hf_qrnn.model.modeling_qrnn import QRNNForConditionalGeneration
from hf_qrnn.training.stopping import exit_status
from hf_qrnn.translation.translator import load_translator

BOX = Path(__file__).resolve().parents[1] / "models"
CODE = BOX.parent / "hf_qrnn" / "model"
_RECORDS = ("README.md", "metrics.jsonl", "learning_curve.png", "attention.png", "test.json")
SAMPLE, SCORES, NUM_BEAMS = "sample.tsv", "sample.json", 5


def main() -> int:
    """Add a model to the box, or write the box's code anew."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--refresh", action="store_true", help="write the code beside all models")
    parser.add_argument("--run", type=Path, help="folder of a finished run")
    parser.add_argument("--name", help="folder of the model in models/")
    parser.add_argument("--sample", type=Path, help="table (source TAB target) for the sample")
    parser.add_argument("--lines", type=int, default=300, help="sources of the sample (300)")
    return exit_status(lambda: run(parser.parse_args()))


def run(args: argparse.Namespace, box: Path = BOX) -> None:
    """Do what the command line says, in the box `box`."""
    if args.refresh == (args.run is not None):
        raise ValueError(
            "Either `--run` with `--name` and `--sample`, or `--refresh` must be given."
        )
    if args.refresh:
        for config in sorted(box.glob("*/config.json")):
            write_code(config.parent)
        return
    if args.name is None or args.sample is None:
        raise ValueError("`--run` needs `--name` and `--sample`.")
    if args.lines < 1:
        raise ValueError(f"`--lines` must be at least 1, but is {args.lines}.")
    with typed(path="--sample"):
        rows = read_lines(args.sample)
    if not (args.run / "model.safetensors").is_file():
        raise ValueError(f"`--run` must be the folder of a finished run, but is '{args.run}'.")
    ship(args.run, box / args.name, read_sample(rows, args.lines))


def read_sample(rows: list[str], lines: int) -> dict[str, list[str]]:
    """Read the targets of the first sources of a table."""
    targets: dict[str, list[str]] = {}
    for number, row in enumerate(rows, 1):
        if row.count("\t") != 1:
            raise ValueError(f"line {number} of `--sample` must have one tab, but is {row!r}.")
        source, target = row.split("\t")
        if source in targets or len(targets) < lines:
            targets.setdefault(source, []).append(target)
    if not targets:
        raise ValueError("`--sample` must have lines, but has none.")
    return targets


def ship(run_folder: Path, folder: Path, targets: dict[str, list[str]]) -> None:
    """Save a run's best model in bfloat16, and score it on sources with their right targets."""
    folder.mkdir(parents=True, exist_ok=True)
    model = QRNNForConditionalGeneration.from_pretrained(run_folder)
    model.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(run_folder).save_pretrained(folder)
    write_code(folder)
    for name in _RECORDS:
        if (run_folder / name).is_file():
            shutil.copyfile(run_folder / name, folder / name)
    sample = "".join(f"{x}\t{target}\n" for x, found in targets.items() for target in found)
    (folder / SAMPLE).write_text(sample, encoding="utf-8")
    scores = score(folder, targets)
    (folder / SCORES).write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(scores))


def write_code(folder: Path) -> None:
    """Make the code in a folder of the box equal the package's."""
    for old in folder.glob("*_qrnn.py"):
        old.unlink()
    for path in sorted(CODE.glob("*_qrnn.py")):
        shutil.copyfile(path, folder / path.name)


def score(folder: Path, targets: dict[str, list[str]]) -> dict[str, float]:
    """Compute the error rates of a saved model over sources with one or more right targets each."""
    translator = load_translator(str(folder), device="cpu", dtype=torch.float32)
    results = translator.translate(list(targets), num_beams=NUM_BEAMS)
    texts = [best.text for best, *_ in results]
    right = list(targets.values())
    return {
        "lines": len(texts),
        "word_error_rate": round(word_error_rate(texts, right), 5),
        "token_error_rate": round(token_error_rate(texts, right), 5),
    }


if __name__ == "__main__":
    sys.exit(main())
