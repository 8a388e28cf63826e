"""Results of the benchmarks: JSON lines as they come, and Markdown tables of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_qrnn.speed.timing import Timing, times_as_fast

Record = dict[str, Any]

FORWARD, BOTH = "forward", "forward+backward"
# What tells one table of cells from another.
_TABLE_FIELDS = ("bench", "device", "dtype", "threads", "mode", "timing", "peer")
_POOLING_COLUMNS = {
    "backend": "backend",
    "mode": "direction",
    "dtype": "dtype",
    "threads": "threads",
    "shape": "B x T x H",
    "ms": "ms",
    "bytes_per_element": "bytes/element",
    "gb_per_second": "GB/s",
    "of_copy": "of copy",
    "of_floor": "of floor",
}


class Results:
    """Records of this run, each a line of the file `path` as soon as it is there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[Record] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("", encoding="utf-8")

    def add(self, record: Record) -> None:
        """Keep, write and print one record."""
        self.records.append(record)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print(sentence(record), flush=True)


def read(path: Path) -> list[Record]:
    """Read the records of a file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def versus(ours: Timing, theirs: Timing) -> Record:
    """Milliseconds of both in the usual and the best round; `ratio` is what goals judge."""
    record = {
        "ms": round(1e3 * ours.median, 5),
        "ms_min": round(1e3 * ours.minimum, 5),
        "peer_ms": round(1e3 * theirs.median, 5),
        "peer_ms_min": round(1e3 * theirs.minimum, 5),
        "rounds": len(ours.seconds),
        "ratio": round(times_as_fast(ours, theirs), 4),
        "ratio_of_minima": round(theirs.minimum / ours.minimum, 4),
    }
    if ours.busy:
        # Not judged: the time of several threads in sum hides what they wait for each other.
        record["ratio_of_cpu_time"] = round(times_as_fast(ours.computing, theirs.computing), 4)
    return record


def sentence(record: Record) -> str:
    """One record for people."""
    if "skipped" in record:
        return f"skipped {record['bench']} {record.get('peer', '')}: {record['skipped']}"
    if record["bench"] == "environment":
        return machine(record)
    where = [record["bench"], *(str(record[x]) for x in _TABLE_FIELDS[1:] if x in record)]
    where += [str(record[x]) for x in ("model", "by") if x in record]
    if "batch" in record:
        sizes = ("batch", "length", *(("hidden", "kernel_size") if "way" in record else ()))
        where.append("x".join(str(record[name]) for name in sizes))
    shown = (
        "backend",
        "way",
        "ms",
        "peer_ms",
        "ratio",
        "ratio_of_cpu_time",
        "gb_per_second",
        "of_copy",
        "of_floor",
        "kernels",
        *("seconds", "peak_mb", "file_mb", "over", "growth"),
        *("of_reference", "of_ctranslate2_int8"),
    )
    return ", ".join(where + [f"{name} {record[name]}" for name in shown if name in record])


def machine(record: Record) -> str:
    """One line about what was measured on, with versions and date."""
    versions = f"torch {record['torch']}, hf_qrnn {record['hf_qrnn']}, {record['date']}"
    cpu = f"{record['cpu']} ({record['cpu_capability']}), {record['cores']} cores"
    return f"{record['gpu']}, {versions}" if "gpu" in record else f"{cpu}, {versions}"


def markdown(records: list[Record]) -> str:
    """Tables of all `records`: machine, layers by cell, poolings, models, what is missing.

    A ratio says how many times as fast the QRNN is; the paper's own stands in brackets.
    """
    parts = [machine(x) + "." for x in records if x["bench"] == "environment"]
    measured = [x for x in records if "skipped" not in x]
    parts += _grids([x for x in measured if x["bench"] in ("layer", "loop", "gemm")])
    pools = [x for x in measured if x["bench"] == "pooling" and "peer" not in x]
    if pools:
        rows = [{**x, "shape": f"{x['batch']} x {x['length']} x {x['hidden']}"} for x in pools]
        parts.append(_rows(rows, _POOLING_COLUMNS))
    peers = [x for x in measured if x["bench"] == "pooling" and "peer" in x]
    if peers:
        names = ("peer", "mode", "peer_gb_per_second", "gb_per_second", "ratio")
        parts.append(_rows(peers, {name: name.replace("_", " ") for name in names}))
    parts += _convolutions([x for x in measured if x["bench"] == "convolution"])
    models = [x for x in measured if x["bench"] == "translation"]
    if models:
        names = ("device", "dtype", "threads", "peer", "characters_per_second")
        names += ("peer_characters_per_second", "ratio")
        parts.append(_rows(models, {name: name.replace("_", " ") for name in names}))
    trainings = [x for x in measured if x["bench"] in ("update", "training", "memory")]
    if trainings:
        rows = [{**x, "rows": f"{x['rows']} x ({x['source']} + {x['target']})"} for x in trainings]
        names = ("bench", "dtype", "threads", "rows", "peer", "ms", "peer_ms", "ratio", "over")
        names += ("characters_per_second", "first_mb", "last_mb", "growth")
        parts.append(_rows(rows, {name: name.replace("_", " ") for name in names}))
    parts += _of_a_gpu(measured)
    parts += decoding_tables(measured)
    products = [x for x in measured if x["bench"] == "product"]
    if products:
        rows = [{**x, "shape": f"{x['rows']} x {x['inner']} x {x['outer']}"} for x in products]
        names = ("threads", "shape", "mode", "ms", "peer_ms", "ratio")
        parts.append(_rows(rows, {name: name.replace("_", " ") for name in names}))
    missing = list(dict.fromkeys(f"- {sentence(x)}" for x in records if "skipped" in x))
    kernels = [
        f"- {x['peer']}: {', '.join(x['kernels']) or 'the profiler saw no kernel'}"
        for x in records
        if x["bench"] == "kernels"
    ]
    return "\n\n".join(part for part in (*parts, "\n".join(missing), "\n".join(kernels)) if part)


def _of_a_gpu(records: list[Record]) -> Iterator[str]:
    """Write what only `scripts/gpu_check.py` measures: forms, other layers, decoding, runs."""
    shape = ("batch", "length", "hidden")
    columns: dict[str, tuple[str, ...]] = {
        "form": ("dtype", "mode", *shape, "stream_ms", "split_ms", "ratio", "chosen"),
        "refit": ("dtype", "mode", "length", "split_up_to", "stream_from", "chosen_is_faster"),
        "peer layer": ("peer", *shape, "ms", "peer_ms", "ratio", "memory_ratio"),
        "decode": ("way", "batch", "dtype", "ms_per_step", "tokens_per_second"),
        "run": ("preset", "data", "seconds", "update", "loss", "chars_per_second", "valid_bleu"),
        "trained": ("preset", "data", "minutes", "updates", "bleu", "chrf", "bleu_signature"),
    }
    for bench, names in columns.items():
        found = [x for x in records if x["bench"] == bench]
        if found:
            yield _rows(found, {name: name.replace("_", " ") for name in names})


def decoding_tables(records: list[Record]) -> Iterator[str]:
    """Tables of decoding: whole processes, steps over their weights, all tasks, memory.

    A column "of x" says how many times as fast as x.
    """
    peers = ("reference", "generate", "marian", "nn_lstm", "ctranslate2_float32")
    peers += ("ctranslate2_int8", "modern")
    steps = ("model", "by", "step_mb", "ms_per_step", "reading_ms_per_step", "over")
    memory = ("model", "by", "first_characters", "characters", "first_mb", "last_mb", "growth")
    speeds = ("model", "task", "by", "ms_per_step", "ms", "characters_per_second")
    columns = {
        "process": ("model", "by", "seconds", "peak_mb", "file_mb"),
        "steps": steps,
        "decoding": (*speeds, *(f"of_{peer}" for peer in peers), "agreement"),
        "decoding_memory": memory,
    }
    for bench, names in columns.items():
        rows = [x for x in records if x["bench"] == bench and "by" in x and "skipped" not in x]
        if bench == "decoding":
            rows = [{**x, "task": _task(x)} for x in rows]
        if rows:
            yield _rows(rows, {name: name.replace("_", " ") for name in names})


def _task(record: Record) -> str:
    beams = "" if record["beams"] == 1 else f", {record['beams']} beams"
    return f"{record['batch']} x ({record['source']} + {record['length']}){beams}"


def _grids(records: list[Record]) -> Iterator[str]:
    """Write a table of batch by length for every way of measuring."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(record.get(name) for name in _TABLE_FIELDS), []).append(record)
    for key, group in groups.items():
        fields = dict(zip(_TABLE_FIELDS, key, strict=True))
        words = [str(fields[x]) for x in ("device", "dtype", "mode", "timing") if fields[x]]
        if fields["device"] == "cpu":
            words.append(f"{fields['threads']} thread{'s' * (fields['threads'] != 1)}")
        cells = {(x["batch"], x["length"]): x for x in group}
        lengths = sorted({length for _, length in cells})
        lines = [_line(["batch \\ T", *lengths]), _line(["---"] * (1 + len(lengths)))]
        for batch in sorted({batch for batch, _ in cells}):
            lines.append(_line([batch, *(_cell(cells.get((batch, x))) for x in lengths)]))
        # The floor is what a layer cannot beat: there the ratio says how far above it is.
        title = "QRNN over" if fields["bench"] == "gemm" else "QRNN against"
        yield f"{title} {fields['peer']}: {', '.join(words)}\n\n" + "\n".join(lines)


def _convolutions(records: list[Record]) -> Iterator[str]:
    """Write a line for each size and a column for each way: times as fast as over windows."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        key = tuple(record[name] for name in ("device", "dtype", "mode", "threads"))
        groups.setdefault(key, []).append(record)
    for (device, dtype, mode, threads), group in groups.items():
        names = list(dict.fromkeys(x["way"] for x in group))
        lines: dict[str, Record] = {}
        for x in group:
            shape = f"{x['batch']} x {x['length']} x {x['hidden']}, {x['kernel_size']}"
            lines.setdefault(shape, {"B x T x H, K": shape, "windows, ms": x["peer_ms"]})
            lines[shape][x["way"]] = f"{x['ratio']:.2f}"
        columns = {name: name for name in ("B x T x H, K", "windows, ms", *names)}
        where = [device, dtype, mode, *([f"threads {threads}"] if device == "cpu" else [])]
        title = f"Convolutions against one product over windows: {', '.join(where)}"
        yield f"{title}\n\n{_rows(list(lines.values()), columns)}"


def _cell(record: Record | None) -> str:
    if record is None:
        return ""
    paper = record.get("paper_ratio")
    return f"{record['ratio']:.2f}" + ("" if paper is None else f" ({paper})")


def _rows(records: list[Record], columns: dict[str, str]) -> str:
    """Write a table with a line for each record, of those columns that any of them fills."""
    columns = {x: title for x, title in columns.items() if any(x in r for r in records)}
    lines = [_line(columns.values()), _line(["---"] * len(columns))]
    return "\n".join(lines + [_line(record.get(x, "") for x in columns) for record in records])


def table(records: list[Record]) -> str:
    """Write a table of records that all have the same fields."""
    return _rows(records, {name: name for name in records[0]})


def _line(cells: Any) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"
