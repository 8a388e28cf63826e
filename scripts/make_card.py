#!/usr/bin/env python
"""Write the model card of a finished translation run, with samples that the model translates now.

    python scripts/make_card.py --run runs/multi30k --output model_cards/multi30k_modern \
        --title "QRNN German-English, Multi30k" --about about.md --sources samples.de

Copies the scores, the metrics and the learning curve beside the card.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from hf_qrnn.training.cards import translation_card
from hf_qrnn.training.data import read_lines
from hf_qrnn.training.run_folder import write_lines
from hf_qrnn.translation import load_translator, one_line


def main() -> int:
    """Write README.md, and copy the run's numbers and curve beside it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, required=True, help="the run's folder")
    parser.add_argument("--output", type=Path, required=True, help="folder of the card")
    parser.add_argument("--title", required=True, help="heading of the card")
    parser.add_argument("--about", type=Path, required=True, help="text on data and limits")
    parser.add_argument("--sources", type=Path, required=True, help="sentences to translate")
    parser.add_argument("--num_beams", type=int, default=5, help="beams for the samples")
    args = parser.parse_args()
    sources = read_lines(args.sources)
    translations = load_translator(str(args.run)).translate(sources, num_beams=args.num_beams)
    samples = [
        (source, one_line(best.text))
        for source, (best, *_) in zip(sources, translations, strict=True)
    ]
    about = args.about.read_text(encoding="utf-8").strip()
    card = translation_card(args.run, title=args.title, about=about, samples=samples)
    args.output.mkdir(parents=True, exist_ok=True)
    write_lines(args.output / "README.md", card.rstrip("\n").split("\n"))
    for name in ("test.json", "metrics.jsonl", "learning_curve.png"):
        shutil.copyfile(args.run / name, args.output / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
