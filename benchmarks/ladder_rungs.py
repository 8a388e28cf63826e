"""The rungs of the ladder of translation, their stored results, and the table made of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from results import Record, read, table

RESULTS = Path(__file__).with_name("results") / "ladder.jsonl"


@dataclass(frozen=True)
class Rung:
    """One change of the recipe.

    Attributes:
        name: What the command line calls it.
        what: What a reader is told; for `base` the recipe itself.
        flags: The flags of `scripts/train_translation.py` that make the change.
    """

    name: str
    what: str
    flags: tuple[str, ...] = ()


def _rung(name: str, what: str, **flags: object) -> Rung:
    words: list[str] = []
    for flag, value in flags.items():
        values = value if isinstance(value, tuple) else (value,)
        words += [f"--{flag}", *map(str, values)]
    return Rung(name, what, tuple(words))


RUNGS = (
    _rung("base", "the recipe: 4 + 4 layers of 256, k = 4, 2, 2, 2"),
    _rung("plain", "no residual connections, no norms", residual="false", rms_norm="false"),
    _rung("one-way", "the encoder reads forwards alone", encoder_bidirectional="false"),
    _rung("one-head", "attention of one head", num_attention_heads=1),
    _rung("last-attention", "attention behind the last layer alone", attention_layers="last"),
    _rung("feed-forward", "gated feed-forward blocks of 448", feed_forward_size=448),
    _rung("deep-6-2", "6 encoder and 2 decoder layers", encoder_layers=6, decoder_layers=2,
          encoder_kernel_sizes=(4, 2, 2, 2, 2, 2)),
    _rung("deep-8-2", "8 encoder and 2 decoder layers", encoder_layers=8, decoder_layers=2,
          encoder_kernel_sizes=(4, 2, 2, 2, 2, 2, 2, 2)),
    _rung("small-3-2", "3 encoder and 2 decoder layers", encoder_layers=3, decoder_layers=2,
          encoder_kernel_sizes=(4, 2, 2)),
    _rung("paper-filters", "k = 6, 2, 2, 2 in the encoder", encoder_kernel_sizes=(6, 2, 2, 2)),
    _rung("wide-filters", "k = 4 in every layer", encoder_kernel_sizes=(4, 4, 4, 4),
          decoder_kernel_sizes=(4, 4, 4, 4)),
    _rung("narrow", "layers of 192", hidden_size=192, embedding_size=192),
    _rung("wide", "layers of 384", hidden_size=384, embedding_size=384),
    _rung("ifo", "ifo-pooling", pooling="ifo"),
    _rung("token-dropout", "a tenth of the embeddings dropped", embedding_dropout=0.1),
    _rung("no-dropout", "no dropout", dropout=0.0),
    _rung("dropout", "twice the dropout", dropout=0.2),
    _rung("no-smoothing", "no label smoothing", label_smoothing=0.0),
    _rung("half-batch", "half the tokens of a batch", max_tokens=768),
    _rung("twice-batch", "twice the tokens of a batch", max_tokens=3072),
    _rung("low-rate", "learning rate 1e-3", learning_rate=1e-3),
    _rung("high-rate", "learning rate 2.5e-3", learning_rate=2.5e-3),
    _rung("average", "the mean of the last five checkpoints may win", average="last",
          save_every=100, keep_last=5),
)  # fmt: skip


def find_rung(name: str) -> Rung:
    """Find a rung by its name.

    Raises:
        ValueError: If there is none.
    """
    for rung in RUNGS:
        if rung.name == name:
            return rung
    names = ", ".join(rung.name for rung in RUNGS)
    raise ValueError(f"a rung must be one of {names}, but is {name!r}.")


# ------------------------------------------------------------------ results


def read_results(path: Path = RESULTS) -> dict[str, Record]:
    """Read the results that there are, by the rungs' names, in the order of `RUNGS`."""
    found = {record["rung"]: record for record in read(path)} if path.is_file() else {}
    return {rung.name: found[rung.name] for rung in RUNGS if rung.name in found}


def keep(record: Record, path: Path = RESULTS) -> None:
    """Write a rung's result into the file, in the place of an earlier one."""
    kept = {**read_results(path), record["rung"]: record}
    lines = [json.dumps(kept[rung.name]) for rung in RUNGS if rung.name in kept]
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".saving")
    fresh.write_text("\n".join(lines) + "\n", encoding="utf-8")
    fresh.replace(path)


def listing(results: Mapping[str, Record], command: Callable[[Rung], str]) -> tuple[str, int]:
    """List every rung with its command and result; count those that are missing.

    Args:
        results: What is stored.
        command: Gives the command of a rung that has no result yet.
    """
    lines = []
    for rung in RUNGS:
        found = results.get(rung.name)
        if found is None:
            lines.append(f"{rung.name}: MISSING\n    {command(rung)}")
            continue
        figures = f"BLEU {found['bleu']:.2f}, chrF {found['chrf']:.2f}"
        updates = f"{found['updates']:,} updates in {found['seconds']:,.0f} s, {found['date']}"
        lines.append(f"{rung.name}: {figures}, {updates}\n    {found['command']}")
    lines.append(f"{len(results)} of {len(RUNGS)} rungs have a result")
    return "\n".join(lines), len(RUNGS) - len(results)


def markdown(results: Mapping[str, Record]) -> str:
    """Write the table of docs/ladder.md; speeds are given beside the first rung's."""
    base = results.get(RUNGS[0].name)
    rows: list[Record] = []
    for rung in RUNGS:
        found = results.get(rung.name)
        row: Record = {"rung": f"`{rung.name}`", "change": rung.what}
        if found is None or base is None:
            rows.append(row | dict.fromkeys(_COLUMNS, "-"))
            continue
        gain = found["bleu"] - base["bleu"]
        rows.append({
            **row,
            "BLEU": f"{found['bleu']:.2f}" + ("" if found is base else f" ({gain:+.2f})"),
            "chrF": f"{found['chrf']:.2f}",
            "parameters": f"{found['parameters']:,}",
            "updates": f"{found['updates']:,}",
            "characters/s, training": _speed(found, base, "train_chars_per_second"),
            "decoding": _speed(found, base, "decode_chars_per_second"),
        })  # fmt: skip
    return table(rows)


_COLUMNS = ("BLEU", "chrF", "parameters", "updates", "characters/s, training", "decoding")


def _speed(found: Record, base: Record, field: str) -> str:
    return f"{found[field]:,} ({found[field] / base[field]:.2f} x)"
