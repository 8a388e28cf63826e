"""The command `hf-qrnn states`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from .streams import check_folder

_TEXT = """\
Draw what the last layer of a classifier remembers over a text (Fig. 3 of arXiv 1611.01576): a
column is a token, a row is one unit, whose states mix with no other's. Prints the label that the
model gives the text, a tab and its probability."""


def add_states(commands: Any) -> None:
    """Add `states` to the commands of a parser."""
    parser = commands.add_parser(
        "states", help="draw the states of a classifier over a text", description=_TEXT
    )
    parser.set_defaults(run=_states, typed={"name_or_path": "MODEL"})
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder with a saved classifier, or its name on the Hub")
    add("-o", "--output", metavar="FILE", required=True, help="picture: .png, .svg or .pdf")
    text = "the text; without it standard input is read, all of it one text"
    add("--text", metavar="TEXT", help=text)
    help_of_last = "draw the last N tokens; 0 = all"
    add("--last", metavar="N", type=int, default=0, help=help_of_last)


def _states(args: argparse.Namespace) -> None:
    # What is wrong with names is said before anything is loaded.
    from hf_qrnn.translation.plots import check_figure_path, hidden_states_figure, save_figure

    check_figure_path(args.output)
    check_folder(args.output)
    if args.last < 0:
        raise ValueError(f"`last` must be at least 0, but is {args.last}.")
    text = sys.stdin.read() if args.text is None else args.text
    if not text.strip():
        raise ValueError(f"`text` must have text, but is {text!r}.")
    from hf_qrnn.translation.states import classifier_states, load_classifier

    model, tokenizer = load_classifier(args.model)
    found = classifier_states(model, tokenizer, text)
    first = max(0, len(found.tokens) - args.last) if args.last else 0
    save_figure(hidden_states_figure(found.tokens[first:], found.states[first:]), args.output)
    print(f"{found.label}\t{found.probability:.4f}")
