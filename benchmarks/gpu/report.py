"""The findings of a call, for people: a table of the steps, the figures, and the goals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .plan import GROUPS, STEPS, Record
from .running import Outcome, read_records

MOST = 9_000  # characters: of a long output the end is what comes home


def table(outcomes: Sequence[Outcome]) -> str:
    """Write a line for each step."""
    lines = [f"{'step':<14}{'status':<10}{'s':>6}  why"]
    letter = ""
    for outcome in outcomes:
        if STEPS[outcome.name].letter != letter:
            letter = STEPS[outcome.name].letter
            lines.append(f"{letter}: {GROUPS[letter]}")
        why = " ".join(outcome.reason.split())[-120:]
        lines.append(f"{outcome.name:<14}{outcome.status:<10}{outcome.seconds:>6.0f}  {why}")
    failed = [outcome.name for outcome in outcomes if outcome.status == "failed"]
    lines.append(f"{len(failed)} of {len(outcomes)} steps failed" + (f": {', '.join(failed)}"))
    return "\n".join(lines).removesuffix(": ")


def records_of(out: Path) -> list[Record]:
    """Read what all groups have found so far, of both calls where they share the folder."""
    return [x for path in sorted(out.glob("gpu_*.jsonl")) for x in read_records(path)]


def figures(records: Sequence[Record]) -> list[str]:
    """List the figures that say themselves what they are."""
    return [str(record["say"]) for record in records if "say" in record]


def goals(records: Sequence[Record]) -> str:
    """Hold the records against the goals of a GPU; a missed one is a finding, not a failure."""
    from goals import judge

    verdicts, unmeasured = judge([x for x in records if "bench" in x])
    lines = [str(verdict) for verdict in verdicts if verdict.name.startswith("GPU")]
    lost = [name for name in unmeasured if name.startswith("GPU")]
    return "\n".join([*sorted(lines), *(f"not measured: {name}" for name in lost)])


def tables(records: Sequence[Record]) -> str:
    """Write all figures as docs/benchmarks.md has them, in Markdown."""
    from results import markdown

    return markdown([x for x in records if "bench" in x])


def write(out: Path, outcomes: Sequence[Outcome]) -> str:
    """Write `gpu_tables.md`, and return what is printed last; nothing here may lose a result."""
    parts, records = [], records_of(out)
    for part in (lambda: "\n".join(figures(records)), lambda: goals(records)):
        try:
            parts.append(part())
        except Exception as error:
            parts.append(f"no table: {type(error).__name__}: {error}")
    try:
        (out / "gpu_tables.md").write_text(tables(records) + "\n", encoding="utf-8")
    except Exception as error:
        parts.append(f"no gpu_tables.md: {type(error).__name__}: {error}")
    text = "\n\n".join(part for part in parts if part)
    return f"{text[-MOST:]}\n\n{table(outcomes)}"
