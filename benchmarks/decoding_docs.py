"""Stores the records of bench_decoding.py, and puts its tables into two pages, between marks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from results import Record, decoding_tables, machine, table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "bench_decoding_cpu.jsonl"
DOCS, README = ROOT / "docs" / "benchmarks.md", ROOT / "README.md"
START, END = "<!-- decoding -->", "<!-- end of decoding -->"
NOT_YET = "Not measured yet."


def details(records: Sequence[Record]) -> str:
    """Make what docs/benchmarks.md says: the machine, every table, who was missing."""
    if not records:
        return NOT_YET
    about = _environment(records)
    versions = f"transformers {about['transformers']}, ctranslate2 {about['ctranslate2']}"
    missing = dict.fromkeys(f"- {x['by']}: {x['skipped']}" for x in records if "skipped" in x)
    return "\n\n".join(
        [
            f"{machine(about)}; {versions}; `python benchmarks/bench_decoding.py "
            f"{' '.join(about['command'])}`.",
            *decoding_tables(list(records)),
            *(["\n".join(missing)] if missing else []),
        ]
    )


def summary(records: Sequence[Record]) -> str:
    """Make what README.md says: one line for each who decodes with the modern model's size."""
    if not records:
        return NOT_YET
    process = {x["by"]: x for x in records if x["bench"] == "process" and "skipped" not in x}
    speeds = [x for x in records if x["bench"] == "decoding" and "skipped" not in x]
    modern = [x for x in speeds if x["model"] == "modern" and x["beams"] == 1]
    first = {x["by"]: x for x in _of(modern, 1)}
    lines = []
    for batch in _of(modern, 32):
        by = batch["by"]
        start = process.get(by, {})
        lines.append(
            {
                "by": by,
                "one sentence, ms": f"{first[by]['ms']:.1f}",
                "batch of 32, characters/s": f"{batch['characters_per_second']:,}",
                "whole process, s": start.get("seconds", ""),
                "peak memory, MB": start.get("peak_mb", ""),
                "file, MB": start.get("file_mb", ""),
            }
        )
    return f"{machine(_environment(records))}.\n\n{table(lines)}"


def _of(records: Iterable[Record], batch: int) -> list[Record]:
    return [x for x in records if x["batch"] == batch and x["length"] == 100]


def _environment(records: Iterable[Record]) -> Record:
    return next(x for x in records if x["bench"] == "environment")


def between(page: str) -> str:
    """Return what stands between the marks of a page."""
    return page.split(f"{START}\n")[1].split(f"\n{END}")[0]


def write(
    records: Sequence[Record], stored: Path = RESULTS, docs: Path = DOCS, readme: Path = README
) -> None:
    """Store the records, and write their tables into both pages."""
    stored.write_text("".join(json.dumps(x) + "\n" for x in records), encoding="utf-8")
    for path, text in ((docs, details(records)), (readme, summary(records))):
        page = path.read_text(encoding="utf-8")
        before, rest = page.split(f"{START}\n")
        after = rest.split(f"{END}\n")[1]
        path.write_text(f"{before}{START}\n{text}\n{END}\n{after}", encoding="utf-8")
