"""The rows of the reproduction: the paper's tasks, by its recipe and by ours, with their controls.

A row is a name: `ptb-word-paper` is a model of ours, `ptb-word-paper-lstm-minutes` its control, of
equal parameters, for as many minutes of training (`-updates`: for as many updates). To add a row is
to add a line to `_MODELS`; its controls come by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from results import Record
from stored_rows import figure, read_result, table_lines

from hf_qrnn.metrics.table import BY_NAME

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "reproduction"
CARDS = HERE.parent / "model_cards"
BUDGETS = ("minutes", "updates")

_PTB = {f"{x}_file": f"ptb.{x}.txt.xz" for x in ("train", "valid", "test")}
_PAIRS = {
    f"{split}_{side}": f"{{{split}}}.{language}.xz"
    for split in ("train", "valid", "test")
    for side, language in (("source", "de"), ("target", "en"))
}


def _pairs(**names: str) -> dict[str, str]:
    return {flag: file.format(**names) for flag, file in _PAIRS.items()}


FILES: dict[str, dict[str, str]] = {
    "lm_ptb": _PTB,
    # The presets hold a tenth of the training reviews out for validation.
    "sentiment_imdb": {"train_file": "train.jsonl.xz", "test_file": "test.jsonl.xz"},
    "nmt_multi30k": _pairs(train="train", valid="val", test="test_2016_flickr"),
    "nmt_tatoeba": _pairs(train="train", valid="valid", test="test"),
}
"""The flags of the files in a folder of data."""


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        name: What the command line and the files call it.
        task: The script, scripts/train_TASK.py.
        table: The table that it stands in.
        config: The preset, a file of scripts/configs.
        data: The folder of its data, a key of `FILES`.
        metric: What is measured on the test set.
        published: Others' figures, for the reader.
        flags: Flags over the preset's.
        controls: Architectures that it is compared with.
        seed: Of weights, dropout and order.
        teachers: Rows that it learns from as well, as their ensemble translates.
        arch: "qrnn", or what a control is.
        budget: Of a control: "minutes" or "updates" of the row that it is compared with.
        like: Of a control: the name of that row.
    """

    name: str
    task: str
    table: str
    config: str
    data: str
    metric: str
    published: str = ""
    flags: tuple[str, ...] = ()
    controls: tuple[str, ...] = ()
    seed: int = 0
    teachers: tuple[str, ...] = ()
    arch: str = "qrnn"
    budget: str = "minutes"
    like: str = ""

    @property
    def has_card(self) -> bool:
        """Tell whether a card is kept: of every model of ours, and of no control."""
        return self.arch == "qrnn"


_WORDS = ("language_model", "Penn Treebank, words")
_CHARACTERS = ("language_model", "Penn Treebank, characters")
_REVIEWS = ("classifier", "IMDb, reviews")
_CAPTIONS = ("translation", "Multi30k, German to English")
_EVERYDAY = ("translation", "Tatoeba, German to English")
_PAPER_WORDS = ("lm_ptb_paper", "lm_ptb", "perplexity")
_PAPER_REVIEWS = ("sentiment_imdb_paper", "sentiment_imdb", "accuracy")
_MODERN_PAIRS = ("translation_modern", "nmt_multi30k", "bleu")
_SEEDS = ("multi30k", "multi30k-1", "multi30k-2", "multi30k-3")

_MODELS = (
    Row("ptb-word-paper-zoneout", *_WORDS, *_PAPER_WORDS, "78.3 (1611.01576)"),
    Row(
        "ptb-word-paper", *_WORDS, *_PAPER_WORDS, "79.9; LSTM 82.0 (1611.01576)",
        ("--zoneout", "0"), ("lstm",),
    ),
    Row(
        "ptb-word-modern", *_WORDS, "lm_ptb_modern", "lm_ptb", "perplexity",
        "AWD-QRNN 58.3 (1803.08240)", controls=("lstm", "transformer"),
    ),
    Row(
        "ptb-char", *_CHARACTERS, "lm_ptb_char", "lm_ptb", "bits_per_character",
        "AWD-QRNN 1.187 (1803.08240)", controls=("lstm",),
    ),
    Row("imdb-paper", *_REVIEWS, *_PAPER_REVIEWS, "91.4; LSTM 90.9, with GloVe (1611.01576)",
        controls=("lstm",)),
    Row("imdb-paper-k4", *_REVIEWS, *_PAPER_REVIEWS, "91.1, with GloVe (1611.01576)",
        ("--encoder_kernel_sizes", "4", "2", "2", "2")),
    Row("imdb-modern", *_REVIEWS, "sentiment_imdb_modern", "sentiment_imdb", "accuracy",
        "naive Bayes on bigrams 86.8 on this half", controls=("lstm",)),
    Row(_SEEDS[0], *_CAPTIONS, *_MODERN_PAIRS, "36.8, the highest found",
        controls=("transformer", "lstm")),
    *(
        Row(name, *_CAPTIONS, *_MODERN_PAIRS, seed=seed)
        for seed, name in enumerate(_SEEDS[1:], start=1)
    ),
    Row("multi30k-distilled", *_CAPTIONS, *_MODERN_PAIRS, teachers=_SEEDS),
    Row("de-en", *_EVERYDAY, "translation_modern", "nmt_tatoeba", "bleu"),
)  # fmt: skip


def _table() -> Iterator[Row]:
    for row in _MODELS:
        yield row
        for arch in row.controls:
            for budget in BUDGETS:
                name = f"{row.name}-{arch}-{budget}"
                yield replace(
                    row, name=name, arch=arch, budget=budget, like=row.name, controls=(),
                    published="",
                )  # fmt: skip


TABLE = tuple(_table())
"""The rows, each control behind the row that it is compared with."""


def parse_row(name: str) -> Row:
    """Find a row by its name.

    Raises:
        ValueError: If there is none.
    """
    found = {row.name: row for row in TABLE}
    if name not in found:
        raise ValueError(f"a row must be one of {', '.join(found)}, but is {name!r}.")
    return found[name]


def read_results(folder: Path = RESULTS) -> dict[str, Record]:
    """Read the results that there are, by the rows' names."""
    found = {row.name: read_result(row, folder) for row in TABLE}
    return {name: record for name, record in found.items() if record is not None}


# ------------------------------------------------------------------ reports


def score(row: Row, record: Record | None) -> str:
    """Write the test score of a row; "-" is not measured yet."""
    if record is None:
        return "-"
    metric = BY_NAME[row.metric]
    digits = 3 if row.metric == "bits_per_character" else 2
    margin = record.get(f"{row.metric}_confidence", {}).get("margin")
    more = "" if margin is None else f" +- {margin:.2f}"
    return figure(metric.scale * record[row.metric], digits) + more


def label(row: Row) -> str:
    """Name the metric of a row."""
    metric = BY_NAME[row.metric]
    return metric.label + (", %" if metric.of else "")


def listing(
    results: Mapping[str, Record], command: Callable[[Row], str], cards: Path = CARDS
) -> tuple[str, int]:
    """List every row: task, command, result, its controls' results; count what is missing.

    Args:
        results: What is stored.
        command: Gives the command of a row that has no result yet.
        cards: The folder of the cards.
    """
    lines, missing = [], 0
    for row in TABLE:
        record = results.get(row.name)
        lacks = [] if record is not None else ["RESULT"]
        if row.has_card and not (cards / row.name / "README.md").is_file():
            lacks.append("CARD")
        missing += bool(lacks)
        parts = [f"{label(row)} {score(row, record)}"]
        if record is not None:
            parts.append(f"{record['parameters']:,} parameters, {record['updates']:,} updates")
            parts.append(f"{record['seconds']:,.0f} s, {record['date']}")
        own = [x for x in TABLE if x.like == row.name]
        parts += [f"{x.arch} at equal {x.budget} {score(x, results.get(x.name))}" for x in own]
        absent = f" MISSING: {' and '.join(lacks)};" if lacks else ""
        lines.append(f"{row.name} ({row.task}):{absent} {'; '.join(parts)}")
        lines.append(f"    {command(row) if record is None else record['command']}")
    lines.append(f"{len(TABLE) - missing} of {len(TABLE)} rows have all")
    return "\n".join(lines), missing


def markdown(results: Mapping[str, Record]) -> str:
    """Make the tables of docs/reproduction.md of the stored results."""
    titles = dict.fromkeys(row.table for row in TABLE)
    return "\n\n".join(f"### {title}\n\n{_rows_of(title, results)}" for title in titles)


def _rows_of(title: str, results: Mapping[str, Record]) -> str:
    rows = [row for row in TABLE if row.table == title]
    head = ["row", f"test {label(rows[0])}", "published", "parameters", "updates", "epochs"]
    head += ["minutes", "seconds an epoch"]
    lines = []
    for row in rows:
        x = results.get(row.name)
        found = x or {}
        name = f"`{row.name}`" if not row.like else f"{row.arch}, equal {row.budget}"
        seconds, epochs = found.get("seconds"), found.get("epochs")
        each = seconds / epochs if seconds and epochs else None
        cells = [name, score(row, x), row.published or "", figure(found.get("parameters"), 0)]
        cells += [figure(found.get("updates"), 0), figure(epochs, 1)]
        cells += [figure(None if seconds is None else seconds / 60, 0), figure(each, 0)]
        lines.append(cells)
    notes = [_note(row, results[row.name]) for row in rows if row.name in results]
    return "\n\n".join(part for part in (table_lines(head, lines), "\n".join(notes)) if part)


def _note(row: Row, record: Record) -> str:
    """Say of a result what another person needs to repeat it."""
    hardware, signature = record["hardware"], record.get(f"{row.metric}_signature")
    parts = [f"`{record['command']}`", f"seed {record['seed']}"]
    parts += [f"{hardware['cpu']}, {hardware['threads']} thread(s), {record['precision']}"]
    parts += [record["date"]] + ([f"`{signature}`"] if signature else [])
    return f"- `{row.name}`: {'; '.join(parts)}"


def names(rows: Sequence[Row]) -> list[str]:
    """Return the names of rows."""
    return [row.name for row in rows]
