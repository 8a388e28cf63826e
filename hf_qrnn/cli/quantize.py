"""The command `hf-qrnn quantize`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from hf_qrnn.data.flags import typed

from .models import model_name

_TEXT = """\
Store a translation model with int8 weights and a scale for each of their rows, a quarter of the
size of float32. The engine computes with the integers; by generate() and from_pretrained the folder
loads as any other, as floats. Prints the sizes on standard error; with sentences and their right
translations also what int8 changes in BLEU and chrF, with a paired bootstrap."""


def add_quantize(commands: Any) -> None:
    """Add `quantize` to the commands of a parser."""
    parser = commands.add_parser(
        "quantize", help="store a model with int8 weights", description=_TEXT
    )
    parser.set_defaults(run=_quantize, typed={"path": "MODEL"})
    add = parser.add_argument
    models = "folder with a saved model, or its name in the box (hf-qrnn models)"
    add("model", metavar="MODEL", type=model_name, help=models)
    text = "new folder for the int8 model"
    add("-o", "--output", metavar="FOLDER", required=True, help=text)
    add("--source", metavar="FILE", help="sentences that both translate")
    add("--references", metavar="FILE", help="their right translations")
    add("--num_beams", metavar="N", type=int, default=1, help="beams of both (1)")


def _quantize(args: argparse.Namespace) -> None:
    from hf_qrnn.engine.quantize import quantize

    # Before a folder is written: what is refused changes nothing.
    texts = _read_texts(args)
    sizes = quantize(args.model, args.output)
    before, after = (f"{size / 1e6:.2f} MB" for size in sizes)
    print(f"weights of {before} stored as int8, {after}: {args.output}", file=sys.stderr)
    if texts is not None:
        print(_compare(args, *texts))


def _read_texts(args: argparse.Namespace) -> tuple[list[str], list[str]] | None:
    """Read the sentences and their right translations, if they are given."""
    from hf_qrnn.data.reading import read_lines

    if (args.source is None) != (args.references is None):
        raise ValueError("`--source` and `--references` must be given together, or neither.")
    if args.num_beams < 1:
        raise ValueError(f"`--num_beams` must be at least 1, but is {args.num_beams}.")
    if args.source is None:
        return None
    with typed(path="--source"):
        source = read_lines(args.source)
    with typed(path="--references"):
        references = read_lines(args.references)
    if not source or len(source) != len(references):
        raise ValueError(
            "`--source` and `--references` must have the same number of lines, at least one, but "
            f"have {len(source)} and {len(references)}."
        )
    return source, references


def _compare(args: argparse.Namespace, source: list[str], references: list[str]) -> str:
    """Translate by both, and write the scores, those of the given model as the baseline."""
    from hf_qrnn.data.translations import one_line
    from hf_qrnn.engine import Translator
    from hf_qrnn.metrics.scoring import compare_translations

    def translate(folder: str) -> list[str]:
        found = Translator(folder).translate(source, num_beams=args.num_beams)
        return [one_line(best.text) for best, *_ in found]

    before, after = translate(args.model), translate(args.output)
    same = sum(one == other for one, other in zip(before, after, strict=True))
    said = f"{same} of {len(source)} translations are the same"
    # Of two systems that say the same in all, the bootstrap would call any difference sure.
    if same == len(source):
        return said
    return f"{said}\n{compare_translations(before, after, references)}"
