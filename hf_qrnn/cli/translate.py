"""The command `hf-qrnn translate`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .decoding import (
    add_decoding,
    add_language,
    check_decoding,
    check_n_best,
    choose_beams,
    progress_bar,
    tell_cut,
    throughput,
)
from .engines import add_engine, check_threads, open_translator
from .models import TRANSLATOR, default_models, model_name
from .paragraphs import add_paragraphs, check_paragraphs, translate_paragraphs
from .streams import (
    check_files,
    check_folder,
    decode,
    open_input,
    open_output,
    prompted,
    windows,
)

if TYPE_CHECKING:
    from hf_qrnn.data.translations import Translation
    from hf_qrnn.engine.sampling import Sampling

_TRANSLATE_TEXT = """\
Translate text, one sentence per line. Every input line gives exactly one output line, in the same
order; an empty line stays empty. Only a newline ends a line. With --n_best N every input line gives
exactly N output lines, best first."""


def add_translate(commands: Any) -> None:
    """Add `translate` to the commands of a parser."""
    parser = commands.add_parser(
        "translate", help="translate lines of text", description=_TRANSLATE_TEXT
    )
    parser.set_defaults(run=_translate, typed={"name_or_path": "MODEL", "language": "--language"})
    add = parser.add_argument
    models = (
        "folder with a saved model, its name in the box (hf-qrnn models) or on the Hub; several "
        f"translate as an ensemble (default: {TRANSLATOR} of the box)"
    )
    add("model", metavar="MODEL", nargs="*", type=model_name, help=models)
    source = "read FILE (text, .gz, .xz) instead of standard input"
    add("-i", "--input", metavar="FILE", help=source)
    add("-o", "--output", metavar="FILE", help="write FILE instead of standard output")
    best = "translations per line, at most --num_beams, or those of --sample (default: 1)"
    add("--n_best", metavar="N", type=int, default=1, help=best)
    scores = "write the log-probability and a tab before each translation"
    add("--scores", action="store_true", help=scores)
    line = "the first line with text to OUT (.png, .svg, .pdf)"
    attention = f"draw the attention between source and translation of {line}"
    add("--attention", metavar="OUT", help=attention)
    states = f"draw the states of the encoder's last layer over {line}"
    add("--hidden_states", metavar="OUT", help=states)
    add_paragraphs(add)
    add("--interactive", action="store_true", help="prompt for one line at a time; Ctrl-D ends")
    add_language(add)
    add_decoding(add)
    add_engine(add)
    _add_sampling(add)


def _add_sampling(add: Any) -> None:
    text = "draw translations, --n_best a line, instead of searching for the best; by the engine"
    add("--sample", action="store_true", help=text)
    add("--seed", metavar="N", type=int, help="draws others for --sample (default: 0)")
    text = "divides scores for --sample: below 1 favours what is likely (default: 1.0)"
    add("--temperature", metavar="T", type=float, help=text)
    text = "draw from the K likeliest tokens alone for --sample; 0 is all (default: 50)"
    add("--top_k", metavar="K", type=int, help=text)
    text = "draw from the likeliest that add up to P alone for --sample (default: 1.0)"
    add("--top_p", metavar="P", type=float, help=text)


def _translate(args: argparse.Namespace) -> None:
    _check_translate(args)
    sampling = _sampling(args)
    needs = None if sampling is None else "--sample"
    translate, translator = open_translator(args.model, args, needs_engine=needs)
    if sampling is None:
        choose_beams(args, translator)
        check_n_best(args)  # before an output is opened
    else:
        args.num_beams = 1
    if args.paragraphs:
        translate_paragraphs(translate, translator, args)
        return
    interactive = args.interactive
    if _is_streamed(args, translator):
        _stream(translator, args)
        return
    num_lines = num_characters = num_cut = 0
    seconds = 0.0
    drawn = not (args.attention or args.hidden_states)
    with (
        open_input(args.input) as source,
        open_output(args.output) as target,
        progress_bar(hidden=interactive) as progress,
    ):
        lines = decode(prompted(source) if interactive else source)
        for window in windows(lines, 1 if interactive else args.batch_size, grow=not interactive):
            start = time.perf_counter()
            drawn_from = (
                {} if sampling is None else {"sampling": replace(sampling, first=num_lines)}
            )
            results = translate(
                window,
                **drawn_from,
                num_beams=args.num_beams,
                num_return_sequences=args.n_best,
                max_new_tokens=args.max_new_tokens,
                batch_size=args.batch_size,
                on_batch=progress.update,
            )
            seconds += time.perf_counter() - start
            num_lines += len(window)
            num_characters += sum(map(len, window))
            num_cut += sum(found.is_cut for row in results for found in row)
            for translations in results:
                target.write(_format(translations, scores=args.scores))
            target.flush()  # whoever reads on need not wait for the end
            # The picture is of the first line with text, once, whichever window it is in.
            text = next((line for line in window if line.strip()), None)
            if text is not None and not drawn:
                _draw(translator, text, args)
                drawn = True
    if not interactive:
        print(throughput(num_lines, num_characters, seconds), file=sys.stderr)
    tell_cut(num_cut, num_lines * args.n_best)
    # Only now, with all translations written: a picture that is not there takes none of them away.
    if not drawn:
        raise ValueError("`--input` must have a line with text to make a picture of, but has none.")


def _is_streamed(args: argparse.Namespace, translator: Any) -> bool:
    """Tell whether characters are written as they come: what is typed, by the engine, greedily."""
    is_other = args.num_beams > 1 or args.scores or args.sample
    is_other |= args.attention is not None or args.hidden_states is not None
    return args.interactive and not is_other and hasattr(translator, "stream")


def _stream(translator: Any, args: argparse.Namespace) -> None:
    """Translate what is typed, and write every piece as it comes."""
    from hf_qrnn.data.translations import pieces_of_one_line

    num_lines = num_cut = 0
    with open_input(args.input) as source, open_output(args.output) as target:
        for line in decode(prompted(source)):
            stream = translator.stream(
                line, language=args.language, max_new_tokens=args.max_new_tokens
            )
            for piece in pieces_of_one_line(stream):
                target.write(piece.encode())
                target.flush()
            target.write(b"\n")
            target.flush()
            num_lines += 1
            num_cut += stream.translation.is_cut
    tell_cut(num_cut, num_lines)


def _sampling(args: argparse.Namespace) -> Sampling | None:
    """Read the flags of sampling; None where nothing is drawn."""
    names = ("seed", "temperature", "top_k", "top_p")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.sample:
        from hf_qrnn.engine.sampling import Sampling

        return Sampling(**given)
    for name, value in given.items():
        raise ValueError(f"`--{name}` must be left out without --sample, but is {value}.")
    return None


def _check_translate(args: argparse.Namespace) -> None:
    """Refuse arguments that can be seen to be wrong before the model is loaded."""
    from hf_qrnn.translation.plots import check_figure_path

    check_decoding(args)
    check_threads(args)
    if args.sample:
        _check_sample(args)
    else:
        check_n_best(args)
    if args.hidden_states is not None and len(args.model) > 1:
        raise ValueError(
            "`--hidden_states` must be left out with several models, but is "
            f"'{args.hidden_states}'."
        )
    check_paragraphs(args)
    if args.interactive and args.input is not None:
        raise ValueError(f"`--input` must be left out with --interactive, but is '{args.input}'.")
    for path in (args.attention, args.hidden_states):
        if path is not None:
            check_figure_path(path)
            check_folder(path)
    pictures = {"attention": args.attention, "hidden_states": args.hidden_states}
    check_files(args.input, args.output, **pictures)
    args.model = default_models(args.model)


def _check_sample(args: argparse.Namespace) -> None:
    if args.num_beams not in (None, 1):
        raise ValueError(f"`--num_beams` must be 1 with --sample, but is {args.num_beams}.")
    if args.n_best < 1:
        raise ValueError(f"`--n_best` must be at least 1, but is {args.n_best}.")
    for name in ("attention", "hidden_states"):
        if getattr(args, name) is not None:
            value = getattr(args, name)
            raise ValueError(f"`--{name}` must be left out with --sample, but is '{value}'.")
    if args.engine == "torch":
        raise ValueError("`--engine` must be 'auto' or 'native' with --sample, but is 'torch'.")


def _draw(translator: Any, text: str, args: argparse.Namespace) -> None:
    from hf_qrnn.translation.plots import attention_figure, hidden_states_figure, save_figure

    if args.attention is not None:
        found = translator.attention(text, language=args.language, num_beams=args.num_beams)
        figure = attention_figure(found.source_tokens, found.target_tokens, found.weights)
        save_figure(figure, args.attention)
    if args.hidden_states is not None:
        tokens, states = translator.hidden_states_map(text, language=args.language)
        save_figure(hidden_states_figure(tokens, states), args.hidden_states)


def _format(translations: Sequence[Translation], *, scores: bool) -> bytes:
    """Write the lines of one source, UTF-8, each with its newline."""
    from hf_qrnn.data.translations import one_line

    lines = [
        (f"{translation.score:.4f}\t" if scores else "") + one_line(translation.text) + "\n"
        for translation in translations
    ]
    return "".join(lines).encode()
