"""Runs steps, each as a process of its own under a limit, and keeps what they found.

Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from .plan import Record

LEAST_SECONDS = 3.0  # with fewer no step is begun
POLL = 0.05


class Job(NamedTuple):
    """A step to run: its name, its limit in seconds, its command and the file of its records."""

    name: str
    limit: float
    command: Sequence[str]
    records: Path


class Outcome(NamedTuple):
    """The end of a step: its worst status, its seconds, and the first reason that it gave."""

    name: str
    status: str
    seconds: float
    reason: str = ""


def read_records(path: Path, name: str | None = None) -> list[Record]:
    """Read the records of a file, of one step or of all; what is no record is passed by."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and name in (None, record.get("step")):
                found.append(record)
    return found


def forget(path: Path, names: Iterable[str]) -> None:
    """Take the records of some steps out of a file: they are run again."""
    kept = [x for x in read_records(path) if x.get("step") not in set(names)]
    if path.exists():
        path.write_text("".join(json.dumps(x) + "\n" for x in kept), encoding="utf-8")


def run_jobs(
    jobs: Sequence[Job],
    *,
    seconds: float,
    log: Path,
    environment: Mapping[str, str] | None = None,
) -> list[Outcome]:
    """Run the jobs in their order, all within `seconds`; say of each how it ended.

    A job that fails, hangs or leaves no record has a record that says so, and the next one runs.
    One that no time is left for is recorded as skipped.
    """
    started, outcomes = time.monotonic(), []
    for path in {job.records for job in jobs}:
        path.parent.mkdir(parents=True, exist_ok=True)
        forget(path, [job.name for job in jobs])
    for job in jobs:
        left = seconds - (time.monotonic() - started)
        if left < LEAST_SECONDS:
            reason = f"no time is left of {seconds:g} s"
            _add(job, {"status": "skipped", "reason": reason})
            outcomes.append(Outcome(job.name, "skipped", 0.0, reason))
        else:
            outcomes.append(_run(job, min(job.limit, left), log, environment))
        last = outcomes[-1]
        why = f": {last.reason.strip().splitlines()[-1][:160]}" if last.reason.strip() else ""
        print(f"{last.name}: {last.status}, {last.seconds:.0f} s{why}", flush=True)
    return outcomes


def _run(job: Job, limit: float, log: Path, environment: Mapping[str, str] | None) -> Outcome:
    started = time.monotonic()
    with log.open("ab") as output:
        output.write(f"\n===== {job.name}, at most {limit:.0f} s\n".encode())
        output.flush()
        begin = output.tell()
        process = subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            # A child may have been left behind, by a step that ended well too.
            kill_tree(process)
    said = log.read_bytes()[begin:].decode(errors="replace")[-2000:]
    found = read_records(job.records, job.name)
    statuses = [record.get("status") for record in found]
    if status is None:
        _add(job, {"status": "failed", "reason": f"it took more than {limit:.0f} s"})
    elif status != 0 and "failed" not in statuses:
        _add(job, {"status": "failed", "reason": f"it ended with {status}: {said}"})
    elif not found:
        _add(job, {"status": "failed", "reason": "it left no record"})
    found = read_records(job.records, job.name)
    return judge(job.name, found, time.monotonic() - started)


def judge(name: str, found: Sequence[Record], seconds: float) -> Outcome:
    """Say how a step ended: failed where any record is, skipped where all are."""
    statuses = [record.get("status", "measured") for record in found]
    for status in ("failed", "passed", "measured", "skipped"):
        if status in statuses:
            reasons = [x.get("reason") for x in found if x.get("status") == status]
            return Outcome(name, status, seconds, str(next(filter(None, reasons), "")))
    return Outcome(name, "failed", seconds, "it left no record")


def _add(job: Job, record: Record) -> None:
    text = job.records.read_text(encoding="utf-8") if job.records.exists() else ""
    with job.records.open("a", encoding="utf-8") as file:
        # The line that the step was killed in is none.
        file.write("\n" if text and not text.endswith("\n") else "")
        file.write(json.dumps({"step": job.name, **record}) + "\n")


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill a process, its group, and its children in groups of their own."""
    children = descendants(process.pid)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for child in children:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(child, signal.SIGKILL)
    process.wait()


def descendants(pid: int) -> list[int]:
    """List the children of a process and theirs, where the system tells (Linux)."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The name, in brackets, may hold blanks.
            after = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            parents.setdefault(int(after[1]), []).append(int(path.parent.name))
    found, left = [], [pid]
    while left:
        children = parents.get(left.pop(), [])
        found += children
        left += children
    return found


def unpack_wheels(folder: Path, target: Path) -> list[str]:
    """Unpack the wheels of `folder` into `target`; name those that are none."""
    broken = []
    for wheel in sorted(folder.glob("*.whl")):
        try:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(target)
        except (zipfile.BadZipFile, OSError) as error:
            broken.append(f"{wheel.name} ({error})")
    return broken
