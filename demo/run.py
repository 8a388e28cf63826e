#!/usr/bin/env python
"""Learn German-English from a generated corpus, translate and score: the program of `make run`.

Exits with 1 when the reloaded model scores below BLEU 90 on unseen sentences, or on sentences with
combinations of words that training never saw.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from demo.corpus.corpus import SentencePair, make_corpus
from hf_qrnn.metrics.scoring import TranslationScores, score_translations
from hf_qrnn.training.run_folder import write_lines
from hf_qrnn.translation.plots import attention_figure, save_figure
from hf_qrnn.translation.translator import Translator, load_translator

ROOT = Path(__file__).parents[1]
FOLDER = Path("runs/demo")
LEAST_BLEU = 90.0
NUM_BEAMS = 2
NUM_TRAIN, NUM_VALID = 40_000, 300


def write_corpus(folder: Path) -> dict[str, list[SentencePair]]:
    """Generate the corpus and write it as line-aligned text; the splits by name."""
    corpus = make_corpus(num_train=NUM_TRAIN + NUM_VALID, seed=0)
    splits = {
        "train": corpus.train[:NUM_TRAIN],
        "valid": corpus.train[NUM_TRAIN:],
        "test": corpus.test,
        "held_out": corpus.held_out,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, pairs in splits.items():
        write_lines(folder / f"{name}.de", [pair.source for pair in pairs])
        write_lines(folder / f"{name}.en", [pair.target for pair in pairs])
    return splits


def train(data: Path) -> None:
    """Run the training script on the corpus, as a user would on text of their own.

    Two processes of one thread each: a model this small keeps no second thread busy.
    """
    flags = ["--config", str(ROOT / "demo/demo.yaml"), "--output_dir", str(FOLDER)]
    flags += ["--overwrite_output_dir"]  # moves what an earlier demo left to runs/demo.replaced
    for split in ("train", "valid"):
        flags += [f"--{split}_source", str(data / f"{split}.de")]
        flags += [f"--{split}_target", str(data / f"{split}.en")]
    if torch.cuda.is_available() or (os.cpu_count() or 1) < 2:
        launcher = [sys.executable]
    else:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc_per_node", "2"]
        flags += ["--cpu", "--num_threads", "1"]
    script = str(ROOT / "scripts/train_translation.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    if subprocess.run([*launcher, script, *flags], env=environment, check=False).returncode != 0:
        raise SystemExit(1)


def score(translator: Translator, pairs: list[SentencePair]) -> TranslationScores:
    """Translate the German side and score it against the English one."""
    sources = [pair.source for pair in pairs]
    translations = translator.translate(sources, num_beams=NUM_BEAMS, batch_size=125)
    texts = [best.text for (best, *_) in translations]
    return score_translations(texts, [pair.target for pair in pairs], metrics=("bleu", "chrf"))


def main() -> int:
    """Train, reload by AutoModelForSeq2SeqLM, score, show; return the exit status."""
    started = time.monotonic()
    disable_progress_bar()
    data = FOLDER / "data"
    splits = write_corpus(data)
    print(f"corpus: {NUM_TRAIN} generated German-English pairs in {data}", flush=True)
    train(data)

    translator = load_translator(str(FOLDER), device="cuda" if torch.cuda.is_available() else "cpu")
    results = {
        "unseen sentences": score(translator, splits["test"]),
        "unseen combinations of words": score(translator, splits["held_out"]),
    }
    for name, scores in results.items():
        print(f"\n{name}\n{scores}")
    print()
    shown = [splits["test"][0], splits["test"][1], splits["held_out"][0]]
    for pair, (best, *_) in zip(
        shown,
        translator.translate([pair.source for pair in shown], num_beams=NUM_BEAMS),
        strict=True,
    ):
        print(f"  {pair.source}\n    -> {best.text}")
    attention = translator.attention(shown[0].source, num_beams=NUM_BEAMS)
    figure = attention_figure(attention.source_tokens, attention.target_tokens, attention.weights)
    save_figure(figure, FOLDER / "attention.png")
    print(f"\nmodel: {FOLDER}\nattention picture: {FOLDER / 'attention.png'}")
    print(f"finished in {time.monotonic() - started:.0f} s")
    weakest = min(scores.bleu.score for scores in results.values() if scores.bleu is not None)
    if weakest < LEAST_BLEU:
        print(f"error: BLEU {weakest:.1f} is below {LEAST_BLEU:.0f}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    # There are no options, but `--help` must not begin to train.
    argparse.ArgumentParser(description=__doc__.split("\n\n")[0]).parse_args()
    sys.exit(main())
