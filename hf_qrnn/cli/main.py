"""The command `hf-qrnn`: translate, pronounce, score, distill, quantize, push, models and others.

Results go to standard output and nothing else does: progress, times and errors go to standard
error. The exit status is 0, or 2 after a mistake of the user's (one line, "error: ..."), 130 after
Ctrl-C and 141 when the reader of our output went away.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from hf_qrnn.data.flags import typed

from .bench import add_bench
from .distill import add_distill
from .hub import add_push, add_verify
from .info import add_info
from .models import add_models
from .pronounce import add_pronounce
from .quantize import add_quantize
from .score import add_score
from .states import add_states
from .streams import naming, replace_closed
from .translate import add_translate


def main(argv: Sequence[str] | None = None) -> int:
    """Run `hf-qrnn` with the arguments `argv` (None: the process's); return the exit status."""
    replace_closed()
    try:
        args = _parser().parse_args(argv)
        with typed(_names(args)), naming("standard output"):
            args.run(args)
            # Here, where an error still becomes a sentence: a full disk may show only now.
            sys.stdout.flush()
    # Before OSError, of which it is one: `| head` is no mistake. The statuses are the shell's own
    # for SIGPIPE and SIGINT, 128 and the signal's number.
    except BrokenPipeError:
        _abandon_stdout()
        return 141
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, ImportError, MemoryError) as error:
        print(f"error: {_sentence(error)}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:
            _abandon_stdout()
        return 2
    return 0


def _names(args: argparse.Namespace) -> dict[str, str]:
    """Return the user's words for the names in the sentences of errors."""
    flags = {name: f"--{name}" for name in vars(args)}
    return {**flags, "model": "MODEL", "repo": "REPO", **getattr(args, "typed", {})}


class _Parser(argparse.ArgumentParser):
    """A parser of the command or of one of its parts, whose complaints take the way of others."""

    def __init__(self, **options: Any) -> None:
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(formatter_class=form, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


def _parser() -> _Parser:
    parser = _Parser(
        prog="hf-qrnn", description="Quasi-recurrent neural networks on the command line."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    add_translate(commands)
    add_pronounce(commands)
    add_score(commands)
    add_distill(commands)
    add_quantize(commands)
    add_push(commands)
    add_verify(commands)
    add_models(commands)
    add_states(commands)
    add_info(commands)
    add_bench(commands)
    return parser


def _abandon_stdout() -> None:
    """Let Python's last flush go nowhere instead of complaining: nobody reads on."""
    # At its end, Python flushes what is left, and would print an error after ours.
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _sentence(error: Exception) -> str:
    # An error of the system's has a number in front, which says nothing to a user.
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.strerror}: '{error.filename}'."
    return str(error)
