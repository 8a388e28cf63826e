"""The shared parts of the commands that translate: flags of the search, loading, progress."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from hf_qrnn.translation.translator import Translator


def add_decoding(add: Any, *, num_beams: int | None = None) -> None:
    """Add the flags of the search to a command, by its `add_argument`.

    Args:
        add: Of the parser.
        num_beams: The default; None is what the model says (`choose_beams`).
    """
    default = "num_beams of the model's generation_config.json, else 1"
    beams = f"width of the beam search; 1 is greedy search (default: {num_beams or default})"
    add("--num_beams", metavar="N", type=int, default=num_beams, help=beams)
    limit = "most tokens of a translation (default: by the lengths in the model's training data)"
    add("--max_new_tokens", metavar="N", type=int, help=limit)
    batch = "lines translated at once; more need more memory (default: 32)"
    add("--batch_size", metavar="N", type=int, default=32, help=batch)
    device = "such as cpu or cuda:0 (default: the GPU if there is one, else the CPU)"
    add("--device", metavar="D", help=device)


def add_language(add: Any) -> None:
    """Add the flag of the sources' language to a command, by its `add_argument`."""
    text = "language of the lines, such as fre, for a model that was trained with --language_tag"
    add("--language", metavar="L", help=text)


def check_decoding(args: argparse.Namespace) -> None:
    """Raise ValueError where a flag of the search is below 1."""
    for name in ("num_beams", "batch_size", "max_new_tokens"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"`--{name}` must be at least 1, but is {value}.")


def choose_beams(args: argparse.Namespace, translator: Any) -> None:
    """Fill in `num_beams` where the user gave none: what the model's generation config says.

    Args:
        args: With `num_beams`.
        translator: One of torch or of the engine; an ensemble's is its first member's.

    Raises:
        ValueError: If that is no number of beams.
    """
    if args.num_beams is not None:
        return
    settings = getattr(translator, "generation", None)
    if settings is None:
        settings = translator.model.generation_config
    found = settings.num_beams
    found = 1 if found is None else found  # transformers' own default
    if type(found) is not int or found < 1:
        raise ValueError(
            f"'num_beams' of the generation config must be an integer of at least 1, "
            f"but is {found!r}."
        )
    args.num_beams = found


def check_n_best(args: argparse.Namespace) -> None:
    """Raise ValueError where `n_best` is no number of translations that the beams give.

    Without `--num_beams` that is known when the model is there: call it again after `choose_beams`.
    """
    most = args.num_beams
    if most is None:
        if args.n_best < 1:
            raise ValueError(f"`--n_best` must be at least 1, but is {args.n_best}.")
    elif not 1 <= args.n_best <= most:
        raise ValueError(
            f"`--n_best` must be in [1, `--num_beams`] = [1, {most}], but is {args.n_best}."
        )


def load(
    models: Sequence[str],
    device: str | None,
    *,
    dtype: torch.dtype | None = None,
    threads: int | None = None,
) -> Translator:
    """Load the translator of folders or names on the Hub, in silence; several are an ensemble.

    Args:
        models: The folders or names.
        device: Where to compute; None is the GPU if there is one, else the CPU.
        dtype: Precision of the weights; None is the one they were saved in.
        threads: Of torch on the CPU, for the whole process; None is torch's own number.
    """
    import torch

    from hf_qrnn.translation.translator import load_translator

    if threads is not None:
        torch.set_num_threads(threads)

    with _quiet_transformers():
        return load_translator(*models, device=device, dtype=dtype)


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Show no bar and no report while weights are loaded; a download from the Hub keeps its bar."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    had_bar, hub_had_bar = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    level = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    # transformers has switched off the Hub's bar with its own.
    if hub_had_bar:
        enable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if had_bar:
            logging.enable_progress_bar()


def progress_bar(*, total: int | None = None, hidden: bool = False) -> Any:
    """Make a bar on standard error, if that is a terminal."""
    from tqdm import tqdm

    disable = True if hidden else None  # None: where standard error is no terminal
    return tqdm(total=total, unit=" lines", disable=disable, file=sys.stderr, leave=False)


def throughput(num_lines: int, num_characters: int, seconds: float) -> str:
    """Write lines and source characters, in all and a second, for standard error."""
    rate = f"{num_lines / max(seconds, 1e-9):.1f} lines/s, " if num_lines else "no lines, "
    rate += f"{num_characters / max(seconds, 1e-9):.0f} characters/s"
    return f"{num_lines} lines, {num_characters} characters in {seconds:.1f} s ({rate})"


def tell_cut(num_cut: int, total: int) -> None:
    """Say how many translations may not be whole, on standard error; nothing where all are."""
    if num_cut:
        print(
            f"{num_cut} of {total} translations reached the length limit and may be cut; "
            "--max_new_tokens raises it",
            file=sys.stderr,
        )
