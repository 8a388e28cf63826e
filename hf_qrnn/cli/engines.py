"""The flags `--engine` and `--threads`, and what a command loads and says of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from .decoding import load

if TYPE_CHECKING:
    from hf_qrnn import engine
    from hf_qrnn.data.translations import Translation
    from hf_qrnn.engine.choice import Choice
    from hf_qrnn.translation.translator import Translator

    AnyTranslator = Translator | engine.Translator

Translate = Callable[..., "list[list[Translation]]"]


def add_engine(add: Any) -> None:
    """Add the flags of the engine to a command, by its `add_argument`."""
    text = (
        "native: compute on the CPU without torch, which starts at once; torch: by generate(); "
        "auto: native where it can do what is asked and there is no GPU (default: auto)"
    )
    add("--engine", metavar="E", default="auto", help=text)
    threads = "CPU threads; results do not depend on them (default: as many as there are cores)"
    add("--threads", metavar="N", type=int, help=threads)


def check_threads(args: argparse.Namespace) -> None:
    """Raise ValueError where `--threads` is below 1."""
    if args.threads is not None and args.threads < 1:
        raise ValueError(f"`--threads` must be at least 1, but is {args.threads}.")


def open_translator(
    models: Sequence[str], args: argparse.Namespace, *, needs_engine: str | None = None
) -> tuple[Translate, AnyTranslator]:
    """Load what translates, by the engine or torch: its `translate`, and itself.

    `translate` has the language of `--language` and the threads of `--threads`. A wrong language
    is refused here, before an output is opened, which empties it.

    Args:
        models: What the user named.
        args: With `engine`, `threads`, `device` and `language`.
        needs_engine: A flag that is given and that the engine alone has, or None.
    """
    from hf_qrnn.engine.choice import choose_engine

    device = args.device
    if needs_engine is not None and args.engine == "auto":
        device = device or "cpu"  # a GPU is torch's
    choice = choose_engine(args.engine, models, device)
    if choice.engine is None and needs_engine is not None:
        reason = f": {choice.refusal}" if choice.refusal else "."
        raise ValueError(
            f"`{needs_engine}` must be left out where the engine does not compute, but is given"
            f"{reason}"
        )
    if choice.engine is None:
        translator: Any = load(models, args.device, threads=args.threads)
        translate = partial(translator.translate, language=args.language)
    else:
        translator = choice.engine
        options = {"language": args.language, "num_threads": args.threads}
        translate = partial(translator.translate, **options)
    translator.check_language(args.language)
    tell_engine(choice)
    return translate, translator


def tell_engine(choice: Choice) -> None:
    """Say on standard error why a model is not computed by the engine, or not in C++.

    Once it is loaded: of a model that nothing can load, one sentence is enough.
    """
    if choice.refusal is not None:
        print(f"generate() computes, since the engine cannot: {choice.refusal}", file=sys.stderr)
    elif choice.engine is not None and choice.engine.reason is not None:
        reason = choice.engine.reason
        print(f"the engine computes in NumPy, which is slower: {reason}", file=sys.stderr)
