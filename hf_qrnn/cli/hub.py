"""The commands `hf-qrnn push` and `hf-qrnn verify`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from .models import model_name

_PUSH_TEXT = """\
Push a model folder to the Hub in one commit: weights, config, code, tokenizer, metrics and card,
never optimiser state or anything else of a run's folder. The same folder again makes no commit.
Prints the address of the commit's page. The token is that of `hf auth login`, or HF_TOKEN."""

_VERIFY_TEXT = """\
Download a model into a fresh cache, compare every file with the hash that the Hub lists and those
of the model with the hashes it was pushed with, load it by all Auto classes in fresh processes with
and without this package, and compare its logits with those stored by `hf-qrnn push`. Runs the code
that lies in the repository, without your token."""


def add_push(commands: Any) -> None:
    """Add `push` to the commands of a parser."""
    parser = commands.add_parser("push", help="push a model to the Hub", description=_PUSH_TEXT)
    parser.set_defaults(run=_push)
    add = parser.add_argument
    models = "folder with a saved model, or its name in the box (hf-qrnn models)"
    add("model", metavar="MODEL", type=model_name, help=models)
    add("repo", metavar="REPO", help="user/name on the Hub; created if missing")
    add("--private", action="store_true", help="create a missing repository as private")
    add("--revision", metavar="R", help="branch, created if missing (default: main)")
    add("--tag", metavar="T", help="tag for the commit, such as v1.0; a tag is never moved")


def add_verify(commands: Any) -> None:
    """Add `verify` to the commands of a parser."""
    parser = commands.add_parser(
        "verify", help="check a model on the Hub", description=_VERIFY_TEXT
    )
    parser.set_defaults(run=_verify)
    parser.add_argument("repo", metavar="REPO[@REVISION]", help="user/name, or user/name@v1.0")


def _push(args: argparse.Namespace) -> None:
    from hf_qrnn.hub.files import shared_files
    from hf_qrnn.hub.push import push
    from hf_qrnn.training.cards import model_card

    folder = Path(args.model)
    # Before the card: it is made of the folder's files, which must be files of the folder.
    has_card = "README.md" in {path.name for path in shared_files(folder)}
    result = push(
        folder,
        args.repo,
        private=args.private,
        revision=args.revision,
        tag=args.tag,
        card=None if has_card else model_card(folder),
    )
    if result.was_lost:
        print("the reply to the commit was lost, but the commit is there", file=sys.stderr)
    if result.changed:
        print(f"{len(result.changed)} files in one commit", file=sys.stderr)
    else:
        print("nothing changed, no commit was made", file=sys.stderr)
    print(result.url)


def _verify(args: argparse.Namespace) -> None:
    from hf_qrnn.hub.verify import verify

    found = verify(args.repo, report=lambda sentence: print(sentence, flush=True))
    if found.has_hashes:
        print(f"{args.repo} is what was pushed")
    else:
        print(
            f"{args.repo} gives the stored logits; whether its files changed since the push is not "
            "known, because that push stored no hashes"
        )
