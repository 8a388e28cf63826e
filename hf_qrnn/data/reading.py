"""Reads sentence pairs: text files, JSON lines, TSV, CSV, parquet, local folders and the Hub.

Whatever is wrong with a file or a data set is one sentence that names the file and the line. Only
a newline ends a line (U+2028, NEL and form feed are text), so line i of one file stays the
translation of line i of the other. `datasets` and `pyarrow` are imported only when asked for.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from .flags import option, several, typed
from .held_out import hold_out
from .languages import check_language
from .rows import (
    LOCAL_FILES,
    OPENERS,
    csv_rows,
    first_line,
    import_optional,
    json_rows,
    parquet_rows,
    read_text,
)
from .texts import has_half_pair

_TABLES = (".tsv", ".csv")
FILE_SUFFIXES = (".jsonl", ".json", *_TABLES, ".parquet", *OPENERS)
RowChange = Callable[[Iterable[tuple[int, Any]]], Iterable[tuple[int, Any]]]
Splits = Mapping[str, Iterable[Mapping[str, Any]]]
# The first pairs of a stream stand for all of it: the tokenizer learns its characters from them,
# and the log its characters per token.
_STREAM_SAMPLE = 20_000
# Customary names, the most usual first.
VALID_SPLITS = ("validation", "valid", "dev", "val")


@dataclass(frozen=True)
class TextPair:
    """One sentence and its translation.

    Attributes:
        source: The sentence to translate.
        target: Its translation.
        language: The language whose tag comes before the source; "" = none.
    """

    source: str
    target: str
    language: str = ""


class Columns(NamedTuple):
    """Keys or columns of rows.

    Attributes:
        source: That of the source; None = the first of two columns without names.
        target: That of the target; None where `source` is.
        language: That of the language; None = pairs have none.
    """

    source: str | None
    target: str | None
    language: str | None = None


@dataclass(frozen=True)
class FilterReport:
    """The numbers of pairs that `filter_pairs` kept and dropped.

    Attributes:
        total: Pairs seen.
        kept: Pairs kept.
        too_long: Pairs dropped because a side has more than `max_chars` characters.
        empty: Pairs dropped because a side has nothing but white space.
        max_chars: The limit, in characters.
    """

    total: int
    kept: int
    too_long: int
    empty: int
    max_chars: int

    def __str__(self) -> str:
        return (
            f"kept {self.kept} of {self.total} pairs (dropped {self.too_long} longer than "
            f"{self.max_chars} characters and {self.empty} with an empty side)"
        )


@dataclass(frozen=True)
class DataOptions:
    """The places of the sentence pairs; each field is the flag of the same name.

    A split is read from its two text files, else from its file of pairs, else from the data set.
    """

    train_source: str | None = option(None, "training sentences, one a line (text, .gz, .xz)")
    train_target: str | None = option(None, "their translations, one a line")
    valid_source: str | None = option(None, "validation sentences")
    valid_target: str | None = option(None, "their translations")
    test_source: str | None = option(None, "test sentences")
    test_target: str | None = option(None, "their translations")
    train_file: str | None = option(
        None, "training pairs (.jsonl, .tsv, .csv, each also with .gz or .xz; .parquet)"
    )
    valid_file: str | None = option(None, "validation pairs")
    test_file: str | None = option(None, "test pairs")
    dataset_name: str | None = option(
        None, "a name on the Hub, a local folder, or one file of training pairs"
    )
    dataset_config: str | None = option(None, "the configuration of the data set, as de-en")
    source_lang: str | None = option(
        None, "key or column of the source, as de; not for TSV and CSV without names"
    )
    target_lang: str | None = option(None, "key or column of the target, as en")
    language_tag: str | None = option(
        None, "key or column of each pair's language, which becomes a tag before the source"
    )
    max_chars: int = option(300, "drop training pairs with a side of more characters")
    valid_share: float = option(
        0.0, "hold out this share of the training pairs, where there are no validation pairs"
    )
    limit: int | None = option(None, "use the first N training pairs that are not dropped")
    streaming: bool = option(False, "read training pairs of dataset_name as they are needed")
    distilled_file: list[str] | None = field(
        default=None, metadata=several("what hf-qrnn distill wrote, mixed into the training pairs")
    )
    num_proc: int = option(
        0, "processes that tokenize the training pairs and keep the ids on the disk; 0 = in memory"
    )


@dataclass(frozen=True)
class TranslationData:
    """The pairs of one experiment.

    Attributes:
        train: Training pairs, filtered by length; of a stream the first 20,000 at most.
        valid: Validation pairs, never filtered.
        test: Test pairs, never filtered; empty when the options name none.
        report: The numbers of training pairs kept and dropped.
        stream: All training pairs, filtered, to be iterated for every epoch; None = `train` is all.
        num_proc: Processes to tokenize `train` in; 0 = this one.
    """

    train: list[TextPair] = field(repr=False)
    valid: list[TextPair] = field(repr=False)
    test: list[TextPair] = field(repr=False)
    report: FilterReport
    stream: "PairStream | None" = field(default=None, repr=False)
    num_proc: int = 0


def read_lines(path: str | Path) -> list[str]:
    r"""Read the lines of a UTF-8 text file, plain, .gz or .xz.

    Only "\n" ends a line. One "\r" before it (or at the end of the file) is taken as part of a
    Windows line end and dropped; any other "\r" is text. A byte order mark at the start of the
    file is dropped. A newline at the end of the file makes no extra line.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not valid UTF-8 (names the line) or not a valid .gz or .xz file.
    """
    # Not `splitlines`, which cuts at characters that are text here.
    lines = read_text(Path(path)).split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def read_parallel(source_path: str | Path, target_path: str | Path) -> list[TextPair]:
    """Read two text files of which line i of one is the translation of line i of the other.

    Raises:
        FileNotFoundError: If one of the files does not exist.
        ValueError: If the files have different numbers of lines, or one is not valid UTF-8.
    """
    with typed(path="source_path"):
        sources = read_lines(source_path)
    with typed(path="target_path"):
        targets = read_lines(target_path)
    if len(sources) != len(targets):
        raise ValueError(
            "`source_path` and `target_path` must have the same number of lines, but "
            f"'{source_path}' has {len(sources)} and '{target_path}' has {len(targets)}."
        )
    return [TextPair(source, target) for source, target in zip(sources, targets, strict=True)]


def read_pairs_file(
    path: str | Path,
    *,
    source_lang: str | None = None,
    target_lang: str | None = None,
    language_tag: str | None = None,
) -> list[TextPair]:
    r"""Read a file of pairs: JSON lines, TSV, CSV or parquet, told apart by the file's suffix.

    A row is `{"translation": {"de": ..., "en": ...}}` or has a column for each language. TSV and
    CSV have two columns, source then target, or a first line that names the languages among the
    columns. Without `source_lang` and `target_lang` they have two columns and no names: the first
    line is a pair as every other. TSV has no quoting (a quote is a character). CSV has commas and
    the quotes of Python's `csv` module, strictly: in quotes a comma, a doubled quote and a newline
    are text, as "\n" is in JSON; a quote that is never closed is an error; blank lines are skipped.

    Args:
        path: .jsonl, .json (one object a line), .tsv or .csv, each also with .gz or .xz; .parquet.
        source_lang: Key or column of the source, as "de"; None only for TSV and CSV.
        target_lang: Key or column of the target, as "en"; None where `source_lang` is.
        language_tag: Key or column of each pair's language; None = none. A TSV or CSV names it in
            its first line, JSON and parquet may have it beside "translation".

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the suffix is none of these, a name is missing, or a row is not a pair or
            has no language (names the row).
    """
    path = Path(path)
    return read_rows(path, _named(Columns(source_lang, target_lang, language_tag), path))


def read_rows(path: Path, columns: Columns, change: RowChange = iter) -> list[TextPair]:
    """Do the work of `read_pairs_file`; `change` is for the rows of JSON and parquet."""
    kind = _kind(path)
    where = f"'{path}'"
    if kind in (".jsonl", ".json"):
        json = json_rows(path, read_lines(path))
        return list(pairs_of(change(json), columns, where, "line"))
    if kind == ".tsv":
        rows = enumerate((line.split("\t") for line in read_lines(path)), 1)
        return _table_pairs(rows, path, columns, separators="tabs")
    if kind == ".csv":
        return _table_pairs(csv_rows(path), path, columns, separators="commas")
    # Parquet packs its own columns; no reader takes it packed once more.
    if kind == ".parquet" and path.suffix.lower() == ".parquet":
        return list(pairs_of(change(parquet_rows(path)), columns, where, "row"))
    raise ValueError(
        "`path` must end in .jsonl, .json, .tsv, .csv (each also with .gz or .xz) or .parquet, "
        f"but is '{path}'."
    )


def _kind(path: Path) -> str:
    """Return the suffix that says what a file holds: that of "train.jsonl.gz" is ".jsonl"."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in OPENERS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _named(columns: Columns, path: Path | None = None) -> Columns:
    """Return `columns`, of which the file at `path`, or a data set, must have the names."""
    source, target, language = columns
    if source is None and target is None and path is not None and _kind(path) in _TABLES:
        if language is None:
            return columns
        raise ValueError(
            "`source_lang` must be a column that the first line names, with `language_tag`, but "
            "is not given."
        )
    if source is None or target is None:
        missing = "source_lang" if source is None else "target_lang"
        raise ValueError(f"`{missing}` must be the key of a language like 'de', but is not given.")
    return columns


def filter_pairs(
    pairs: Iterable[TextPair], *, max_chars: int = 300
) -> tuple[list[TextPair], FilterReport]:
    """Drop pairs with a side longer than `max_chars` characters or without text.

    Returns:
        The pairs kept, in their order, and the counts. A pair that is empty on one side and too
        long on the other counts as empty.

    Raises:
        ValueError: If `max_chars` is below 1.
    """
    if max_chars < 1:
        raise ValueError(f"`max_chars` must be at least 1, but is {max_chars}.")
    kept: list[TextPair] = []
    total = too_long = empty = 0
    for pair in pairs:
        total += 1
        fault = _fault(pair, max_chars)
        empty += fault == "empty"
        too_long += fault == "too long"
        if fault is None:
            kept.append(pair)
    return kept, FilterReport(total, len(kept), too_long, empty, max_chars)


def _fault(pair: TextPair, max_chars: int) -> str | None:
    """Give the reason to drop a training pair, or None."""
    if not pair.source.strip() or not pair.target.strip():
        return "empty"
    return "too long" if max(len(pair.source), len(pair.target)) > max_chars else None


class PairStream:
    """The filtered training pairs of `options.dataset_name`, read anew by every iteration.

    Args:
        options: The data set, and what is dropped.

    Raises:
        ValueError: If `dataset_name` or a language is not given.
    """

    def __init__(self, options: DataOptions) -> None:
        if options.dataset_name is None:
            raise ValueError("`dataset_name` must be given for `streaming`, but is not.")
        if Path(options.dataset_name).is_file():
            raise ValueError(
                "`dataset_name` must be a folder or a data set on the Hub for `streaming`, but is "
                f"the file '{options.dataset_name}': name its folder."
            )
        self._options, self._name = options, options.dataset_name
        self._columns = _columns(options)

    def __iter__(self) -> Iterator[TextPair]:
        options = self._options
        # Opened by every iteration: what `datasets` streams can be read once.
        splits = load_splits(self._name, options.dataset_config, streaming=True)
        if "train" not in splits:
            raise ValueError(
                f"`dataset_name` must have the split 'train', but '{self._name}' has only "
                f"{_names(splits)}."
            )
        where = f"the split 'train' of '{self._name}'"
        rows = enumerate(splits["train"], 1)
        pairs = pairs_of(rows, self._columns, where, "row")
        # The limit counts what is kept, as it does for pairs in memory.
        kept = (pair for pair in pairs if _fault(pair, options.max_chars) is None)
        return islice(kept, options.limit)


def load_translation_data(options: DataOptions) -> TranslationData:
    """Load training, validation and (if named) test pairs, and filter the training pairs.

    Raises:
        FileNotFoundError: If a named file does not exist.
        ImportError: If `datasets` or `pyarrow` is needed and not installed.
        ConnectionError: If the Hub cannot be reached.
        ValueError: If the options name no training or validation pairs, name them twice, or a
            file is not what it should be.
    """
    # Numbers first: to read the data may take minutes.
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"`limit` must be at least 1, but is {options.limit}.")
    if options.num_proc < 0:
        raise ValueError(f"`num_proc` must be at least 0, but is {options.num_proc}.")
    if options.streaming and options.distilled_file:
        raise ValueError(
            "`distilled_file` must be left out with `streaming`, but is "
            f"{_names(options.distilled_file)}."
        )
    _check_valid_share(options)
    stream = PairStream(options) if options.streaming else None
    pairs = _load_split(options, "train") if stream is None else islice(stream, _STREAM_SAMPLE)
    # Only what trains is filtered: scores of a part of a test set compare with nobody's.
    train, report = filter_pairs(pairs, max_chars=options.max_chars)
    if not train:
        raise ValueError(
            f"{_places(options, 'train')} must hold a pair with text on both sides of at most "
            f"{options.max_chars} characters (`max_chars`), but {report.kept} of the "
            f"{report.total} pairs are such."
        )
    held_out: list[TextPair] = []
    if options.valid_share:
        train, held_out = hold_out(train, options.valid_share)
    if options.valid_share and not (train and held_out):
        raise ValueError(
            "`valid_share` must leave pairs to train on and to validate with, but is "
            f"{options.valid_share} of {report.kept} pairs."
        )
    return TranslationData(
        train=train[: options.limit],
        valid=held_out or _load_split(options, "valid"),
        test=_load_split(options, "test"),
        report=report,
        stream=stream,
        num_proc=options.num_proc,
    )


def _check_valid_share(options: DataOptions) -> None:
    """Raise ValueError where pairs are to be held out, and there are others, or it cannot be."""
    share = options.valid_share
    if not 0 <= share < 1:
        raise ValueError(f"`valid_share` must be in [0, 1), but is {share}.")
    others = ("valid_source", "valid_target", "valid_file", "streaming")
    given = next((name for name in others if getattr(options, name)), None)
    if share and given:
        raise ValueError(f"`valid_share` must be left out with `{given}`, but is {share}.")


def _load_split(options: DataOptions, split: str) -> list[TextPair]:
    """Load the pairs of "train", "valid" or "test" from the first place the options name."""
    source: str | None = getattr(options, f"{split}_source")
    target: str | None = getattr(options, f"{split}_target")
    file: str | None = getattr(options, f"{split}_file")
    # Half of two files is a mistake, which must not fall through to the next place.
    if (source is None) != (target is None):
        given, missing = ("source", "target") if target is None else ("target", "source")
        raise ValueError(
            f"`{split}_{missing}` must be given together with `{split}_{given}`, but is not."
        )
    if source is not None and target is not None:
        if file is not None:
            raise ValueError(
                f"`{split}_file` must be left out when `{split}_source` is given, but is '{file}'."
            )
        if options.language_tag is not None:
            raise ValueError(
                f"`language_tag` must be left out when `{split}_source` is given, whose lines "
                f"have no languages, but is '{options.language_tag}'."
            )
        with typed(source_path=f"{split}_source", target_path=f"{split}_target"):
            return _not_empty(read_parallel(source, target), options, split)
    if file is not None:
        with typed(path=f"{split}_file"):
            pairs = read_rows(Path(file), _columns(options, Path(file)))
            return _not_empty(pairs, options, split)
    name = options.dataset_name
    # A file holds the training pairs alone; by its suffix, a missing one is no name on the Hub.
    if name is not None and (Path(name).is_file() or Path(name).suffix.lower() in FILE_SUFFIXES):
        if split == "train":
            with typed(path="dataset_name"):
                pairs = read_rows(Path(name), _columns(options, Path(name)))
                return _not_empty(pairs, options, split)
        name = None
    if name is not None:
        pairs = _load_named_split(options, name, split)
        # Nobody asked for the test pairs of a data set: there may be none.
        return pairs if split == "test" else _not_empty(pairs, options, split)
    if split == "test":
        return []
    share = ", `valid_share`" if split == "valid" else ""
    raise ValueError(
        f"`{split}_source` and `{split}_target`, `{split}_file`{share} or a `dataset_name` with "
        "such a split must be given, but none is."
    )


def _places(options: DataOptions, split: str) -> str:
    """Name the options that say where the pairs of a split are, for an error."""
    if getattr(options, f"{split}_source") is not None:
        return f"`{split}_source` and `{split}_target`"
    return "`dataset_name`" if getattr(options, f"{split}_file") is None else f"`{split}_file`"


def _not_empty(pairs: list[TextPair], options: DataOptions, split: str) -> list[TextPair]:
    """Return `pairs`, of which there must be one."""
    if not pairs:
        raise ValueError(f"{_places(options, split)} must hold at least one pair, but is empty.")
    return pairs


def _load_named_split(options: DataOptions, name: str, split: str) -> list[TextPair]:
    """Load a split of the data set `name`; validation has several customary names."""
    present = load_splits(name, options.dataset_config)
    candidates = VALID_SPLITS if split == "valid" else (split,)
    found = next((candidate for candidate in candidates if candidate in present), None)
    if found is None and split == "test":
        return []
    if found is None:
        raise ValueError(
            f"`dataset_name` must have the split '{candidates[0]}', but '{name}' has only "
            f"{_names(present)}: give --{split}_source and --{split}_target, or --{split}_file."
        )
    return _split_pairs(present, found, f"'{name}'", _columns(options))


def _split_pairs(splits: Splits, split: str, name: str, columns: Columns) -> list[TextPair]:
    where = f"the split '{split}' of {name}"
    return list(pairs_of(enumerate(splits[split], 1), columns, where, "row"))


def _columns(options: DataOptions, path: Path | None = None) -> Columns:
    """Return the columns that the options name, for the file at `path` or a data set."""
    own = Columns(options.source_lang, options.target_lang, options.language_tag)
    return _named(own, path)


def load_splits(name: str, config: str | None, *, streaming: bool = False) -> Splits:
    """Open all splits of a data set by `datasets`; rows are read when iterated."""
    if not name:
        raise ValueError("`dataset_name` must be a folder or a data set on the Hub, but is ''.")
    datasets = import_optional("datasets", f"load the data set '{name}'")
    rule = "`dataset_name` must be a local folder or a data set on the Hub"
    try:
        splits: Splits = datasets.load_dataset(name, config, streaming=streaming)
    # Before OSError, of which both are kinds.
    except ConnectionError as error:
        raise ConnectionError(
            f"{rule}, but '{name}' is no folder here and the Hub cannot be reached: {LOCAL_FILES}."
        ) from error
    except FileNotFoundError as error:
        found = "holds no data files" if Path(name).exists() else "is neither"
        raise ValueError(f"{rule}, but '{name}' {found}: {LOCAL_FILES}.") from error
    except (ValueError, RuntimeError, OSError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"{rule}, but '{name}' does not load: {first_line(error)}") from error
    return splits


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _table_pairs(
    rows: Iterable[tuple[int, list[str]]],
    path: Path,
    columns: Columns,
    *,
    separators: str,
) -> list[TextPair]:
    """Make pairs of numbered rows, with or without a first row that names the columns."""
    rows = list(rows)
    # Without names the columns are source and target, and there is no third.
    names = rows[0][1] if rows else []
    wanted = [column for column in columns if column is not None]
    places, width = [0, 1], 2
    if wanted and all(column in names for column in wanted):
        places = [names.index(column) for column in wanted]
        width, rows = len(names), rows[1:]
    # One name alone is a mistake in the other: without names the first column would be the source,
    # whichever was meant.
    elif columns.language is not None or any(column in names for column in wanted):
        raise ValueError(
            f"the first line of '{path}' must name the columns {_names(wanted)}, but has "
            f"{_names(names) or 'nothing'}."
        )
    for number, row in rows:
        # Of another width, a row has a separator within a text, and nobody can tell which.
        if len(row) != width:
            raise ValueError(
                f"line {number} of '{path}' must have {width} columns (separated by {separators}; "
                "a file of more than two names them in its first line, the languages among them), "
                f"but has {len(row)}."
            )
    if columns.language is not None:
        for number, row in rows:
            _check_language(row[places[-1]], columns.language, f"line {number} of '{path}'")
    return [TextPair(*(row[place] for place in places)) for _, row in rows]


def _check_language(language: str, column: str, place: str) -> None:
    """Raise ValueError, which names the place, unless `language` can be a tag."""
    try:
        check_language(language)
    except ValueError as error:
        raise ValueError(f"'{column}' in {place} is no language: {error}") from None


def pairs_of(
    rows: Iterable[tuple[int, Any]], columns: Columns, where: str, unit: str
) -> Iterator[TextPair]:
    """Turn numbered rows into pairs; a row that is not a pair is an error that names it."""
    assert columns.source is not None, "only a table has columns without names"
    assert columns.target is not None, "only a table has columns without names"
    keys = (columns.source, columns.target)
    for number, row in rows:
        place = f"{unit} {number} of {where}"
        if not isinstance(row, Mapping):
            raise ValueError(f"{place} must be an object, but is a {type(row).__name__}.")
        # Translation data sets of the Hub put the languages one level down.
        nested = row.get("translation")
        texts = nested if isinstance(nested, Mapping) else row
        source, target = (_text(texts, key, place) for key in keys)
        language = ""
        if columns.language is not None:
            language = _text(row if columns.language in row else texts, columns.language, place)
            _check_language(language, columns.language, place)
        yield TextPair(source, target, language)


def _text(texts: Mapping[str, Any], key: str, place: str) -> str:
    if key not in texts:
        raise ValueError(f"{place} must have the key '{key}', but has {_names(texts) or 'no key'}.")
    value = texts[key]
    # No `str(value)`: None or a number in place of a sentence is a mistake.
    if not isinstance(value, str):
        raise ValueError(f"'{key}' in {place} must be text, but is {value!r}.")
    # JSON may write half a surrogate pair ("\ud800"), which no tokenizer can encode.
    if has_half_pair(value):
        raise ValueError(
            f"'{key}' in {place} must be valid Unicode, but has half a surrogate pair."
        )
    return value
