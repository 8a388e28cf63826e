"""The command `hf-qrnn`: translate, score, push, verify, info, bench.

Results go to standard output and nothing else does: progress, times and errors go to standard
error. The exit status is 0, or 2 after a mistake of the user's (one line, "error: ..."), 130 after
Ctrl-C and 141 when the reader of our output went away.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

from hf_qrnn.data.flags import typed

from .bench import add_bench
from .hub import add_push, add_verify

if TYPE_CHECKING:
    from hf_qrnn.translation.translator import Translation, Translator

_WINDOW_BATCHES = 64  # Lines are sorted by length within so many batches, then written.

_TRANSLATE_TEXT = """\
Translate text, one sentence a line. Every line in gives exactly one line out, in the same order;
an empty line gives an empty line. Only a newline ends a line. With --n_best N every line in gives
exactly N lines, best first."""

_SCORE_TEXT = """\
Print BLEU, chrF and TER of translations with sacrebleu's signatures, to the digit as the sacrebleu
command; edits per character (CER) and per token between blanks (TokER) of the references; and the
share of lines that equal a reference. The translations come from a file (--hypotheses), or a model
makes them (--model and --source). --bleu_tokenize zh, char, ja-mecab ... is for languages without
blanks. --confidence adds 95 % intervals by bootstrap; --compare tests whether another system's
translations differ by more than chance. Files may be .gz or .xz."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `hf-qrnn` with the arguments `argv` (None: those of the process); the exit status."""
    try:
        args = _parser().parse_args(argv)
        with typed(_names(args)), _naming("standard output"):
            args.run(args)
            sys.stdout.flush()
    except BrokenPipeError:
        _abandon_stdout()
        return 141
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {_sentence(error)}", file=sys.stderr)
        return 2
    return 0


def _names(args: argparse.Namespace) -> dict[str, str]:
    """What the user typed for the names in the sentences of errors."""
    flags = {name: f"--{name}" for name in vars(args)}
    return {**flags, "model": "MODEL", "repo": "REPO", **getattr(args, "typed", {})}


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints take the way of all other mistakes."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


class _Once(argparse.Action):
    """A flag whose second value would silently replace the first."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None
    ) -> None:
        if getattr(namespace, self.dest) is not None:
            parser.error(f"`{option}` must be given once, but is given again with '{values}'")
        setattr(namespace, self.dest, values)


def _parser() -> _Parser:
    parser = _Parser(
        prog="hf-qrnn",
        description="Quasi-recurrent neural networks on the command line.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_translate(commands)
    _add_score(commands)
    add_push(commands)
    add_verify(commands)
    info = commands.add_parser("info", help="print versions and backends", allow_abbrev=False)
    info.set_defaults(run=_info)
    add_bench(commands)
    return parser


def _add_translate(commands: Any) -> None:
    parser = commands.add_parser(
        "translate",
        help="translate lines of text",
        description=_TRANSLATE_TEXT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=_translate, typed={"name_or_path": "MODEL"})
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder with a saved model, or its name on the Hub")
    add("-i", "--input", metavar="FILE", help="read FILE (text, .gz, .xz), not standard input")
    add("-o", "--output", metavar="FILE", help="write FILE, not standard output")
    add("--n_best", metavar="N", type=int, default=1, help="translations a line (1)")
    add("--scores", action="store_true", help="write the log-probability and a tab before each")
    picture = "write a picture (.png, .svg, .pdf) of the first line with text: "
    add("--attention", metavar="OUT", help=picture + "where the translation looks")
    add("--hidden_states", metavar="OUT", help=picture + "the states of the encoder's last layer")
    add("--interactive", action="store_true", help="prompt for lines; Ctrl-D ends")
    _add_decoding(add)


def _add_score(commands: Any) -> None:
    parser = commands.add_parser(
        "score",
        help="score translations against references",
        description=_SCORE_TEXT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    by_model = {"model": "--model", "name_or_path": "--model"}
    parser.set_defaults(run=_score, typed={**by_model, "baseline": "--compare"})
    add = parser.add_argument
    right = "the right translations; of several files, line i of each is right for line i"
    add("--references", metavar="FILE", required=True, nargs="+", action="extend", help=right)
    once: dict[str, Any] = {"action": _Once}
    add("--hypotheses", metavar="FILE", help="the translations to score", **once)
    translates = "folder or Hub name of a model that translates --source"
    add("--model", metavar="MODEL", help=translates, **once)
    add("--source", metavar="FILE", help="the sentences to translate", **once)
    add("--bleu_tokenize", metavar="T", default="13a", help="sacrebleu's tokens for BLEU (13a)")
    add("--confidence", action="store_true", help="add 95 %% intervals by bootstrap")
    baseline = "translations of a baseline, for a paired bootstrap"
    add("--compare", metavar="FILE", help=baseline, **once)
    add("--num_resamples", metavar="N", type=int, default=1000, help="test sets drawn (1000)")
    add("--json", action="store_true", help="print one JSON object")
    _add_decoding(add)


def _add_decoding(add: Any) -> None:
    add("--num_beams", metavar="N", type=int, default=1, help="beams; 1 is greedy search (1)")
    limit = "most tokens of a translation (as the model's training data had, with room)"
    add("--max_new_tokens", metavar="N", type=int, help=limit)
    add("--batch_size", metavar="N", type=int, default=32, help="lines computed at once (32)")
    add("--device", metavar="D", help="as cpu or cuda:0 (the GPU if there is one, else the CPU)")


def _translate(args: argparse.Namespace) -> None:
    _check_translate(args)
    translator = _load(args.model, args.device)
    interactive = args.interactive
    num_lines = num_characters = num_cut = 0
    seconds = 0.0
    drawn = not (args.attention or args.hidden_states)
    with (
        _open_input(args.input) as source,
        _open_output(args.output) as target,
        _progress(hidden=interactive) as progress,
    ):
        lines = _decode(_prompted(source) if interactive else source)
        for window in _windows(lines, 1 if interactive else args.batch_size, grow=not interactive):
            start = time.perf_counter()
            results = translator.translate(
                window,
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
            target.flush()
            text = next((line for line in window if line.strip()), None)
            if text is not None and not drawn:
                _draw(translator, text, args)
                drawn = True
    if not interactive:
        print(_throughput(num_lines, num_characters, seconds), file=sys.stderr)
    _tell_cut(num_cut, num_lines * args.n_best)
    if not drawn:
        raise ValueError("`--input` must have a line with text to make a picture of, but has none.")


def _check_translate(args: argparse.Namespace) -> None:
    """What can be wrong before the model is loaded."""
    from hf_qrnn.translation.plots import check_figure_path

    _check_decoding(args)
    if not 1 <= args.n_best <= args.num_beams:
        raise ValueError(
            f"`--n_best` must be in [1, `--num_beams`] = [1, {args.num_beams}], "
            f"but is {args.n_best}."
        )
    if args.interactive and args.input is not None:
        raise ValueError(f"`--input` must be left out with --interactive, but is '{args.input}'.")
    for path in (args.attention, args.hidden_states):
        if path is not None:
            check_figure_path(path)
            _check_folder(path)
    if args.output is not None:
        _check_folder(args.output)
        if args.input is not None and os.path.realpath(args.input) == os.path.realpath(args.output):
            raise ValueError(f"`--output` must not be the input, but is '{args.output}' too.")
    if args.input is not None and not Path(args.input).is_file():
        raise ValueError(f"`--input` must be an existing file, but is '{args.input}'.")


def _check_folder(path: str) -> None:
    if not Path(path).parent.is_dir():
        raise ValueError(f"The folder of an output file must exist, but that of '{path}' does not.")


def _check_decoding(args: argparse.Namespace) -> None:
    for name in ("num_beams", "batch_size", "max_new_tokens"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"`--{name}` must be at least 1, but is {value}.")


def _score(args: argparse.Namespace) -> None:
    from hf_qrnn.metrics.scoring import compare_translations, score_translations

    _check_score(args)
    references = _read_references(args.references)
    baseline = None if args.compare is None else _lines(args.compare, "compare")
    if args.hypotheses is not None:
        hypotheses = _lines(args.hypotheses, "hypotheses")
    else:
        source = _lines(args.source, "source")
        if len(source) != len(references):
            raise ValueError(
                "`--source` and `--references` must have the same number of lines, "
                f"but have {len(source)} and {len(references)}."
            )
        hypotheses = _translate_all(source, args)
    count, tokenize = args.num_resamples, args.bleu_tokenize
    scores: Any
    if baseline is not None:
        scores = compare_translations(
            baseline, hypotheses, references, num_resamples=count, bleu_tokenize=tokenize
        )
    else:
        count = count if args.confidence else 0
        scores = score_translations(
            hypotheses, references, num_resamples=count, bleu_tokenize=tokenize
        )
    if args.json:
        import json

        print(json.dumps(scores.to_dict(), indent=2))
    else:
        print(scores)


def _check_score(args: argparse.Namespace) -> None:
    """What can be wrong before anything is read."""
    from hf_qrnn.metrics.table import check_bleu_tokenizer

    _check_decoding(args)
    if args.num_resamples < 2:
        raise ValueError(f"`--num_resamples` must be at least 2, but is {args.num_resamples}.")
    if (args.hypotheses is None) == (args.model is None) or (
        (args.model is None) != (args.source is None)
    ):
        raise ValueError("Either `--hypotheses` or `--model` with `--source` must be given.")
    with typed(bleu_tokenize="--bleu_tokenize"):
        check_bleu_tokenizer(args.bleu_tokenize)


def _read_references(paths: Sequence[str]) -> list[list[str]]:
    """The right translations of each line, one from each file."""
    streams = [_lines(path, "references") for path in paths]
    for path, lines in zip(paths, streams, strict=True):
        if len(lines) != len(streams[0]):
            raise ValueError(
                "All files of `--references` must have the same number of lines, but "
                f"'{paths[0]}' has {len(streams[0])} and '{path}' has {len(lines)}."
            )
    return [list(several) for several in zip(*streams, strict=True)]


def _lines(path: str, flag: str) -> list[str]:
    """The lines of the file that `--flag` gives."""
    from hf_qrnn.data.reading import read_lines

    with typed(path=f"--{flag}"):
        return read_lines(path)


def _translate_all(source: list[str], args: argparse.Namespace) -> list[str]:
    from hf_qrnn.translation.translator import one_line

    translator = _load(args.model, args.device)
    start = time.perf_counter()
    with _progress(total=len(source)) as progress:
        results = translator.translate(
            source,
            num_beams=args.num_beams,
            max_new_tokens=args.max_new_tokens,
            batch_size=args.batch_size,
            on_batch=progress.update,
        )
    seconds = time.perf_counter() - start
    print(_throughput(len(source), sum(map(len, source)), seconds), file=sys.stderr)
    _tell_cut(sum(best.is_cut for best, *_ in results), len(source))
    return [one_line(translations[0].text) for translations in results]


def _info(args: argparse.Namespace) -> None:
    import platform

    import tokenizers
    import torch
    import transformers

    from hf_qrnn import __version__

    print(f"hf_qrnn       {__version__}")
    print(f"python        {platform.python_version()}")
    print(f"torch         {torch.__version__}")
    print(f"transformers  {transformers.__version__}")
    print(f"tokenizers    {tokenizers.__version__}")
    _print_backends()


def _print_backends() -> None:
    """Which backend can pool on which device, or why not, and what the library is."""
    import torch

    from hf_qrnn import kernels
    from hf_qrnn.model.backends_qrnn import BACKENDS, unavailable

    count = torch.cuda.device_count()
    devices = [torch.device("cpu"), *(torch.device("cuda", i) for i in range(max(count, 1)))]
    print("pooling backends, the first available one is used:")
    for device in devices:
        name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" and count else ""
        print(f"  {device if count else device.type}{name}")
        for backend in BACKENDS if device.type == "cuda" else ("compiled", "torch"):
            reason = unavailable(backend, device)
            if reason is None and device.type == "cuda" and not count:
                reason = "no device"
            print(f"    {backend:9} {'available' if reason is None else reason}")
    library = kernels.load()
    if library.path is None:
        return
    print("compiled library")
    print(f"  path          {library.path}")
    print(f"  ABI target    torch {library.info['abi_target']}")
    archs = " ".join(f"sm_{arch}" for arch in library.info["cuda_archs"])
    print(f"  CUDA          {archs or 'none'}")
    print(f"  nvcc          {library.info['nvcc'] or 'none'}")
    print(f"  CPU           {kernels.operation('simd')('')}")


def _load(model: str, device: str | None) -> Translator:
    from hf_qrnn.translation.translator import load_translator

    with _quiet_transformers():
        return load_translator(model, device=device)


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No bar and no report while weights are loaded; a download from the Hub keeps its bar."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    had_bar, hub_had_bar = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    level = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    if hub_had_bar:
        enable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if had_bar:
            logging.enable_progress_bar()


def _progress(*, total: int | None = None, hidden: bool = False) -> Any:
    """A bar on standard error, if that is a terminal."""
    from tqdm import tqdm

    disable = True if hidden else None
    return tqdm(total=total, unit=" lines", disable=disable, file=sys.stderr, leave=False)


def _draw(translator: Translator, text: str, args: argparse.Namespace) -> None:
    from hf_qrnn.translation.plots import attention_figure, hidden_states_figure, save_figure

    if args.attention is not None:
        found = translator.attention(text, num_beams=args.num_beams)
        figure = attention_figure(found.source_tokens, found.target_tokens, found.weights)
        save_figure(figure, args.attention)
    if args.hidden_states is not None:
        tokens, states = translator.hidden_states_map(text)
        save_figure(hidden_states_figure(tokens, states), args.hidden_states)


def _format(translations: Sequence[Translation], *, scores: bool) -> bytes:
    """The lines of one source, UTF-8, each with its newline."""
    from hf_qrnn.translation.translator import one_line

    lines = [
        (f"{translation.score:.4f}\t" if scores else "") + one_line(translation.text) + "\n"
        for translation in translations
    ]
    return "".join(lines).encode()


def _throughput(num_lines: int, num_characters: int, seconds: float) -> str:
    rate = f"{num_lines / max(seconds, 1e-9):.1f} lines/s, " if num_lines else "no lines, "
    rate += f"{num_characters / max(seconds, 1e-9):.0f} characters/s"
    return f"{num_lines} lines, {num_characters} characters in {seconds:.1f} s ({rate})"


def _tell_cut(num_cut: int, total: int) -> None:
    """Say how many translations may not be whole, on standard error; nothing where all are."""
    if num_cut:
        print(
            f"{num_cut} of {total} translations reached the length limit and may be cut; "
            "--max_new_tokens raises it",
            file=sys.stderr,
        )


@contextlib.contextmanager
def _open_input(path: str | None) -> Iterator[IO[bytes]]:
    import gzip
    import lzma

    if path is None:
        yield sys.stdin.buffer
        return
    openers: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open}
    opener = openers.get(Path(path).suffix.lower(), open)
    with opener(path, "rb") as file:
        yield file


@contextlib.contextmanager
def _open_output(path: str | None) -> Iterator[IO[bytes]]:
    # Bytes, so that what is written does not depend on the locale.
    if path is None:
        yield sys.stdout.buffer
        return
    with _naming(path), open(path, "wb") as file:
        yield file


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Let an error of writing, which knows no name, tell what was written."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.strerror is not None:
            error.filename = name
        raise


def _prompted(stream: IO[bytes]) -> Iterator[bytes]:
    """Lines of a stream, each asked for with a prompt on standard error."""
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        line = stream.readline()
        if not line:
            print(file=sys.stderr)
            return
        yield line


def _decode(lines: Iterable[bytes]) -> Iterator[str]:
    """Texts of lines without their ends, read as `training.data.read_lines` reads them."""
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode()
        except UnicodeDecodeError:
            raise ValueError(
                f"`--input` must be UTF-8 text, but has an invalid byte in line {number}."
            ) from None
        text = text.removesuffix("\n").removesuffix("\r")
        yield text.removeprefix("\ufeff") if number == 1 else text


def _windows(lines: Iterator[str], batch_size: int, *, grow: bool) -> Iterator[list[str]]:
    """Runs of lines: one batch first, so that output starts soon, then up to 64 batches.

    A broken line ends the lines, but only after those before it.
    """
    size, window = batch_size, list[str]()
    try:
        for line in lines:
            window.append(line)
            if len(window) == size:
                yield window
                window = []
                size = min(2 * size, _WINDOW_BATCHES * batch_size) if grow else size
    except ValueError:
        if window:
            yield window
        raise
    if window:
        yield window


def _abandon_stdout() -> None:
    """Nobody reads on: let Python's last flush go nowhere instead of complaining."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.strerror}: '{error.filename}'."
    return str(error)
