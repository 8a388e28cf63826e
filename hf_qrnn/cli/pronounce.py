"""The command `hf-qrnn pronounce`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_qrnn.data.box import box_names, find_in_box
from hf_qrnn.data.json_files import read_json

from .decoding import check_n_best, load, progress_bar
from .engines import add_engine, check_threads, tell_engine
from .models import model_name
from .streams import check_files, decode, open_input, open_output, windows

if TYPE_CHECKING:
    from hf_qrnn.pronunciation.lexicon import Lexicon
    from hf_qrnn.pronunciation.pronouncer import Pronunciation
    from hf_qrnn.translation.translator import Translator

_PRONOUNCE_TEXT = """\
Pronounce words, one a line. Every word gives a line, in the same order: the word, a tab and its
phones with blanks between them. What has no pronunciation that can be trusted is refused: its line
is the word, two tabs and "# " with the reason. With --n_best N a word gives up to N lines, best
first. What is written (without --scores) can be read by --lexicon."""

_OWN = "pronounce-"  # and the language of a model that has one
_MANY_LANGUAGES = "pronounce-11"


def add_pronounce(commands: Any) -> None:
    """Add `pronounce` to the commands of a parser."""
    parser = commands.add_parser(
        "pronounce", help="give the phones of words", description=_PRONOUNCE_TEXT
    )
    names = {"name_or_path": "--model", "model": "--model"}
    parser.set_defaults(run=_pronounce, typed=names)
    add = parser.add_argument
    add("words", metavar="WORD", nargs="*", help="words; none = those of --input")
    source = "read FILE (text, .gz, .xz), one word a line, instead of standard input"
    add("-i", "--input", metavar="FILE", help=source)
    add("-o", "--output", metavar="FILE", help="write FILE instead of standard output")
    model = (
        "folder with a saved model, its name in the box (hf-qrnn models) or on the Hub (default: "
        "the box's for the language)"
    )
    add("--model", metavar="MODEL", type=model_name, help=model)
    language = (
        "language of the words, as fr, fre or French: for a model with language tags, or to find "
        "the default model"
    )
    add("--language", metavar="L", help=language)
    lexicon = "ask FILE first (text, .gz, .xz): word, tab and phones a line, or as CMUdict is"
    add("--lexicon", metavar="FILE", help=lexicon)
    add("--ipa", action="store_true", help="write ARPAbet as IPA, without blanks")
    best = "pronunciations of a word, at most --num_beams (default: 1)"
    add("--n_best", metavar="N", type=int, default=1, help=best)
    add("--scores", action="store_true", help="write the confidence and a tab before each line")
    threshold = "refuse what has less confidence; 0 refuses nothing for want of it (default: 0.3)"
    add("--threshold", metavar="P", type=float, help=threshold)
    beams = "width of the beam search (default: 5)"
    add("--num_beams", metavar="N", type=int, default=5, help=beams)
    batch = "words pronounced at once; more need more memory (default: 64)"
    add("--batch_size", metavar="N", type=int, default=64, help=batch)
    device = "such as cpu or cuda:0 (default: the GPU if there is one, else the CPU)"
    add("--device", metavar="D", help=device)
    add_engine(add)


def _pronounce(args: argparse.Namespace) -> None:
    _check_pronounce(args)
    # Before the model, which takes longer to load.
    lexicon = None if args.lexicon is None else _read_lexicon(args.lexicon)
    model, language = _find_model(args.model, args.language)

    from hf_qrnn.engine.choice import choose_engine
    from hf_qrnn.pronunciation.pronouncer import Pronouncer

    choice = choose_engine(args.engine, [model], args.device)
    pronouncer = Pronouncer(
        choice.engine or _load(model, args),
        lexicon=lexicon,
        language=language,
        num_beams=args.num_beams,
        batch_size=args.batch_size,
        num_threads=args.threads,
        **({} if args.threshold is None else {"threshold": args.threshold}),
    )
    tell_engine(choice)
    num_words = num_refused = 0
    is_arpabet = True
    seconds = 0.0
    with (
        _open_words(args) as words,
        open_output(args.output) as target,
        progress_bar() as progress,
    ):
        for window in windows(words, args.batch_size, grow=True):
            start = time.perf_counter()
            results = pronouncer.pronounce(window, n_best=args.n_best, on_batch=progress.update)
            seconds += time.perf_counter() - start
            num_words += len(window)
            num_refused += sum(row[0].is_refused for row in results)
            for row in results:
                is_arpabet &= all(_is_arpabet(found) for found in row)
                target.write(_format(row, ipa=args.ipa, scores=args.scores))
            target.flush()  # whoever reads on need not wait for the end
    rate = f"{num_words / max(seconds, 1e-9):.1f} words/s"
    print(f"{num_words} words in {seconds:.1f} s ({rate})", file=sys.stderr)
    if num_refused:
        print(f"{num_refused} of {num_words} words refused: their lines say why", file=sys.stderr)
    if args.ipa and not is_arpabet:
        print("symbols that are not ARPAbet are written as they are, not as --ipa", file=sys.stderr)


def _load(model: str, args: argparse.Namespace) -> Translator:
    import torch

    from hf_qrnn.pronunciation.pronouncer import DTYPE

    return load([model], args.device, dtype=getattr(torch, DTYPE), threads=args.threads)


@contextmanager
def _open_words(args: argparse.Namespace) -> Iterator[Iterator[str]]:
    """Give the words of the command line, or those of a file or of standard input."""
    if args.words:
        yield iter(args.words)
        return
    with open_input(args.input) as file:
        yield decode(file)


def _check_pronounce(args: argparse.Namespace) -> None:
    """Refuse arguments that can be seen to be wrong before the model is loaded."""
    for name in ("num_beams", "batch_size"):
        if getattr(args, name) < 1:
            raise ValueError(f"`--{name}` must be at least 1, but is {getattr(args, name)}.")
    check_threads(args)
    check_n_best(args)
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        raise ValueError(f"`--threshold` must be in [0, 1], but is {args.threshold}.")
    if args.words and args.input is not None:
        raise ValueError(f"`--input` must be left out with words, but is '{args.input}'.")
    # Nobody who types the command alone knows what it waits for.
    if not args.words and args.input is None and (sys.stdin is None or sys.stdin.isatty()):
        raise ValueError("`WORD` must be given, or --input, or a pipe to read words from.")
    check_files(args.input, args.output, lexicon=args.lexicon)


def _read_lexicon(path: str) -> Lexicon:
    from hf_qrnn.data.flags import typed
    from hf_qrnn.pronunciation.lexicon import read_lexicon

    with typed(path="--lexicon"):
        return read_lexicon(path)


def _find_model(model: str | None, language: str | None) -> tuple[str, str | None]:
    """Find the model to load, and the language to tell it: its own, of a model of one language."""
    if model is not None:
        return model, language
    from hf_qrnn.pronunciation.languages import choose_model

    found_in_box = {name: find_in_box(name) for name in box_names() if name.startswith(_OWN)}
    folders = {name: path for name, path in found_in_box.items() if path is not None}
    several = {name: _tags(folders[name]) for name in folders if name == _MANY_LANGUAGES}
    own = [name.removeprefix(_OWN) for name in folders if name not in several]
    found = choose_model(language, own, several)
    if found is None:
        raise ValueError(
            f"`--model` must be given where '{_OWN}{language or 'en'}' is not in the box of models "
            f"(there is: {', '.join(box_names()) or 'none'})."
        )
    name, tag = found
    return str(folders[name if tag is not None else f"{_OWN}{name}"]), tag


def _tags(folder: Path) -> Sequence[str]:
    """Read the languages that a model has tags for; none where that cannot be read."""
    path = folder / "tokenizer_config.json"
    found = read_json(path).get("languages") if path.is_file() else None
    return found if isinstance(found, list) else ()


def _is_arpabet(found: Pronunciation) -> bool:
    from hf_qrnn.pronunciation.arpabet import is_arpabet

    return is_arpabet(found.symbols)


def _format(row: Sequence[Pronunciation], *, ipa: bool, scores: bool) -> bytes:
    """Write the lines of one word, UTF-8, each with its newline."""
    from hf_qrnn.data.translations import one_line
    from hf_qrnn.pronunciation.arpabet import to_ipa

    lines = []
    for found in row:
        word = one_line(found.word).replace("\t", " ")
        text = to_ipa(found.symbols) if ipa and _is_arpabet(found) else found.text
        score = f"{found.confidence:.4f}\t" if scores else ""
        rest = f"\t# {found.reason}" if found.is_refused else text
        lines.append(f"{score}{word}\t{rest}\n")
    # An argument that is no UTF-8 is refused, and its word must still be written.
    return "".join(lines).encode(errors="replace")
