"""The command `hf-qrnn quantize`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from .models import model_name

_TEXT = """\
Store a translation model with int8 weights and a scale for each of their rows, a quarter of the
size of float32. The engine computes with the integers; by generate() and from_pretrained the folder
loads as any other, as floats. Prints the sizes on standard error."""


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


def _quantize(args: argparse.Namespace) -> None:
    from hf_qrnn.engine.quantize import quantize

    sizes = quantize(args.model, args.output)
    before, after = (f"{size / 1e6:.2f} MB" for size in sizes)
    print(f"weights of {before} stored as int8, {after}: {args.output}", file=sys.stderr)
