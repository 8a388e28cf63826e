#!/usr/bin/env python
"""Write the model card of a finished translation run, with samples that the model translates now.

    python scripts/make_card.py --run runs/multi30k --output model_cards/multi30k_modern \
        --title "QRNN German-English, Multi30k" --about about.md --sources samples.de

Without `--output` the card stays in the run's folder; with it, the card, the scores, the metrics
and the pictures are copied there.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from hf_qrnn.data.flags import typed
from hf_qrnn.data.reading import read_lines
from hf_qrnn.training.publish import draw_attention, translate_samples, write_card
from hf_qrnn.training.stopping import exit_status
from hf_qrnn.translation.translator import load_translator


def main() -> int:
    """Write README.md into the run's folder, and copy it with the run's numbers and pictures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, required=True, help="the run's folder")
    parser.add_argument("--output", type=Path, help="folder to copy the card to")
    parser.add_argument("--title", help="heading of the card (the run's card_title)")
    parser.add_argument("--about", type=Path, help="file with a text on data and limits (none)")
    parser.add_argument("--sources", type=Path, help="sentences to translate as samples")
    parser.add_argument("--sentence", help="draw attention.png of its translation")
    parser.add_argument("--language", help="language of both, for a model with --language_tag")
    parser.add_argument("--num_beams", type=int, default=5, help="beams for the samples")
    return exit_status(lambda: make_card(parser.parse_args()))


def make_card(args: argparse.Namespace) -> None:
    """Write and copy the card as the command line says."""
    with typed(path="--about"):
        about = None if args.about is None else "\n".join(read_lines(args.about)).strip()
    with typed(path="--sources"):
        sources = [] if args.sources is None else read_lines(args.sources)
    names = {"folder": "--run", "name_or_path": "--run"}
    with typed(names, num_beams="--num_beams", language="--language"):
        samples = []
        if args.sentence is not None or sources:
            translator = load_translator(str(args.run), device="cpu")
            if args.sentence is not None:
                beams = {"num_beams": args.num_beams}
                draw_attention(translator, args.sentence, args.run, language=args.language, **beams)
            samples = translate_samples(translator, sources, args.num_beams, args.language)
        write_card(args.run, title=args.title, about=about, samples=samples)
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
        pictures = ("learning_curve.png", "attention.png", "states.png")
        copied = ("test.json", "metrics.jsonl", *pictures, "README.md")
        for name in copied:
            if (args.run / name).is_file():
                shutil.copyfile(args.run / name, args.output / name)


if __name__ == "__main__":
    sys.exit(main())
