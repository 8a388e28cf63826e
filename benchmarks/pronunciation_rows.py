"""The rows of the pronunciation benchmark, their stored results, and the tables made of them.

A row is a name: `fre-qrnn-single-0` is data, architecture, variant and seed, and may end in
`-updates` for a control with as many updates as the QRNN made. `cmudict-espeak` is a rival.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import stored_rows
from pronunciation_data import CMUDICT, DATA, LANGUAGES, TEN
from pronunciation_models import ARCHITECTURES
from pronunciation_rivals import RIVALS
from results import Record
from stored_rows import figure as _figure
from stored_rows import table_lines as _lines

RESULTS = Path(__file__).with_name("results") / "pronunciation"
JOINT = "joint"
VARIANTS = ("single", "ensemble", "distilled", JOINT)
BUDGETS = ("minutes", "updates")
PUBLISHED = {
    "eng_us": 45.13, "arm_e": 4.5, "bul": 8.3, "dut": 10.8, "fre": 7.4, "geo": 0.0,
    "hbs_latn": 34.7, "hun": 1.5, "jpn_hira": 6.2, "kor": 18.4, "vie_hanoi": 1.3,
}  # fmt: skip
"""WER on dev of the shared task's baseline, an ensemble of neural transducers."""
PUBLISHED_MEAN = 9.35


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        data: One of `DATA`; of a joint model the language that is judged.
        model: An architecture or a rival.
        variant: One of `VARIANTS`; "rival" of a rival.
        seed: The first seed.
        budget: "minutes", or "updates": as many as the QRNN's row of the same data made.
    """

    data: str
    model: str
    variant: str = "single"
    seed: int = 0
    budget: str = "minutes"

    @property
    def name(self) -> str:
        """The name that the command line and the files have."""
        if self.model in RIVALS:
            return f"{self.data}-{self.model}"
        tail = "" if self.budget == "minutes" else f"-{self.budget}"
        return f"{self.data}-{self.model}-{self.variant}-{self.seed}{tail}"


def parse_row(name: str) -> Row:
    """Read a row's name.

    Raises:
        ValueError: If there is no such row.
    """
    parts = name.split("-")
    if len(parts) == 2 and parts[0] == CMUDICT and parts[1] in RIVALS:
        return Row(CMUDICT, parts[1], "rival")
    budget = parts.pop() if len(parts) == 5 else "minutes"
    if len(parts) == 4 and parts[3].isascii() and parts[3].isdecimal():
        row = Row(parts[0], parts[1], parts[2], int(parts[3]), budget)
        if _is_row(row) and row.name == name:
            return row
    raise ValueError(
        f"a row must be DATA-MODEL-VARIANT-SEED[-updates] with data of {', '.join(DATA)}, a model "
        f"of {', '.join(ARCHITECTURES)} and a variant of {', '.join(VARIANTS)} (all but single of "
        f"qrnn alone, joint not of {CMUDICT}), or {CMUDICT}-g2p_en or {CMUDICT}-espeak, "
        f"but is {name!r}."
    )


def _is_row(row: Row) -> bool:
    known = row.data in DATA and row.model in ARCHITECTURES and row.variant in VARIANTS
    variants = row.model == "qrnn" or row.variant == "single"
    budgets = row.budget in BUDGETS and (row.budget == "minutes" or row.model != "qrnn")
    return known and variants and budgets and (row.variant != JOINT or row.data != CMUDICT)


def _table() -> Iterator[Row]:
    for data in LANGUAGES:
        yield Row(data, "qrnn")
        yield Row(data, "qrnn", "ensemble")
        yield Row(data, "qrnn", JOINT)
    for variant in VARIANTS[:3]:
        yield Row(CMUDICT, "qrnn", variant)
    for data in CONTROLLED:
        for model in ARCHITECTURES[1:]:
            yield Row(data, model)
    for rival in RIVALS:
        yield Row(CMUDICT, rival, "rival")


CONTROLLED = ("fre", "kor", "hbs_latn")
"""The data on which the controls are measured too."""
TABLE = tuple(_table())
"""The rows of the table in docs/pronunciation.md. Any other name of a row can be run as well: a
language distilled, a control with as many updates (`-updates`), a control on CMUdict."""


# ------------------------------------------------------------------ results


def read_result(row: Row, folder: Path = RESULTS) -> Record | None:
    """Read the stored result of a row; None where there is none."""
    return stored_rows.read_result(row, folder)


def write_result(row: Row, record: Record, folder: Path = RESULTS) -> None:
    """Store the result of a row, at once."""
    stored_rows.write_result(row, record, folder)


def read_results(folder: Path = RESULTS, rows: Sequence[Row] = TABLE) -> dict[str, Record]:
    """Read the results that there are, by the rows' names."""
    found = {row.name: read_result(row, folder) for row in rows}
    return {name: record for name, record in found.items() if record is not None}


# ------------------------------------------------------------------ goals


def goal_records(results: Mapping[str, Record]) -> list[Record]:
    """Make the records that `goals.py` judges, of what was measured."""
    found: list[Record] = []

    def add(what: str, **figures: float) -> None:
        found.append({"bench": "pronunciation", "what": what, **figures})

    several: dict[str, list[float]] = {}
    for variant in VARIANTS[:3]:
        wers = _wers(results, variant)
        of = "single" if variant == "single" else "ensemble or distilled"
        if all(data in wers for data in TEN):
            several.setdefault(f"mean of ten, {of}", []).append(_mean(wers))
        if "eng_us" in wers:
            several.setdefault(f"eng_us, {of}", []).append(wers["eng_us"])
    for what, found_wers in several.items():
        add(what, wer=min(found_wers))
    for variant in VARIANTS[:3]:
        own = results.get(Row(CMUDICT, "qrnn", variant).name)
        if own is None:
            continue
        speeds = {x: own[x] for x in ("words_per_second", "ms_per_word") if x in own}
        rivals = {
            f"wer_of_{rival}": results[f"{CMUDICT}-{rival}"]["wer"]
            for rival in RIVALS
            if f"{CMUDICT}-{rival}" in results
        }
        add(f"{CMUDICT}, {variant}", wer=own["wer"], per=own["per"], **speeds, **rivals)
    return found


def _wers(results: Mapping[str, Record], variant: str) -> dict[str, float]:
    names = {data: Row(data, "qrnn", variant).name for data in LANGUAGES}
    return {data: results[name]["wer"] for data, name in names.items() if name in results}


def _mean(wers: Mapping[str, float]) -> float:
    return round(sum(wers[data] for data in TEN) / len(TEN), 3)


# ------------------------------------------------------------------ tables


def markdown(results: Mapping[str, Record]) -> str:
    """Make the tables of docs/pronunciation.md of the stored results; "-" is not measured yet."""
    parts = [_languages_table(results), _controls_table(results), _english_table(results)]
    return "\n\n".join(parts)


def _languages_table(results: Mapping[str, Record]) -> str:
    variants = ("single", "ensemble", JOINT)
    head = ["WER on dev, %", *variants, "published ensemble"]
    wers = {variant: _wers(results, variant) for variant in variants}
    rows = []
    for data in LANGUAGES:
        own = [_figure(wers[variant].get(data)) for variant in variants]
        rows.append([data, *own, _figure(PUBLISHED[data])])
    complete = [all(data in wers[variant] for data in TEN) for variant in variants]
    means = [
        _figure(_mean(wers[x]) if done else None)
        for x, done in zip(variants, complete, strict=True)
    ]
    rows.insert(1, ["mean of ten", *means, _figure(PUBLISHED_MEAN)])
    return _lines(head, rows)


def _controls_table(results: Mapping[str, Record]) -> str:
    head = ["WER, %, equal parameters, equal minutes", *ARCHITECTURES, "parameters of each"]
    rows = []
    for data in CONTROLLED:
        found = [results.get(Row(data, model).name) or {} for model in ARCHITECTURES]
        sizes = " / ".join(_figure(x.get("parameters"), 0) for x in found)
        rows.append([data, *(_figure(x.get("wer")) for x in found), sizes])
    return _lines(head, rows)


def _english_table(results: Mapping[str, Record]) -> str:
    head = ["CMUdict, test words", "WER, any reference", "first", "PER, any", "first"]
    head += ["WER with stress, any", "PER with stress, any", "words/s"]
    rows = []
    shown = [Row(CMUDICT, "qrnn", variant) for variant in VARIANTS[:3]]
    shown += [Row(CMUDICT, rival, "rival") for rival in RIVALS]
    for row in shown:
        x = results.get(row.name) or {}
        fields = ("wer", "wer_first", "per", "per_first", "wer_stress", "per_stress")
        label = (
            str(x.get("about", row.model)) if row.model in RIVALS else f"{row.model}, {row.variant}"
        )
        own = [_figure(x.get(name)) for name in fields]
        rows.append([label, *own, _figure(x.get("words_per_second"), 0)])
    return _lines(head, rows)


def listing(results: Mapping[str, Record], command: Callable[[Row], str]) -> tuple[str, int]:
    """List every row of the table with its command and result; count those that are missing.

    Args:
        results: What is stored.
        command: Gives the command of a row that has no result yet.
    """
    lines, missing = [], 0
    for row in TABLE:
        found = results.get(row.name)
        if found is None:
            missing += 1
            lines.append(f"{row.name}: MISSING\n    {command(row)}")
            continue
        figures = [f"WER {found['wer']:.2f} %", f"PER {found['per']:.2f} %"]
        if "parameters" in found:
            figures.append(f"{found['parameters']:,} parameters")
            figures.append(f"{found['updates']:,} updates in {found['seconds']:,.0f} s")
        figures.append(f"{found['words_per_second']:,.0f} words/s, {found['date']}")
        lines.append(f"{row.name}: {', '.join(figures)}\n    {found['command']}")
    lines.append(f"{len(TABLE) - missing} of {len(TABLE)} rows have a result")
    return "\n".join(lines), missing
