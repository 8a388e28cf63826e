"""Trains, measures and stores the rows of the reproduction.

Every model is trained by its script's own `main`, a control by the same `main` with another model
in it (controls.py), in a folder below `Setting.out`, and goes on where it was interrupted.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controls import load_script, run_control
from reproduction_rows import CARDS, FILES, RESULTS, Row, parse_row
from results import Record
from stored_rows import RunFailedError, circumstances, read_result, write_result

from hf_qrnn.cli.main import main as run_command
from hf_qrnn.data.json_files import read_json
from hf_qrnn.metrics.table import RECORDED
from hf_qrnn.training.run_files import read_records

CONFIGS = Path(__file__).parents[1] / "scripts" / "configs"
_ENDLESS = 1_000_000  # epochs, so that minutes are what ends a run
_CARD_FILES = ("README.md", "test.json", "metrics.jsonl", "learning_curve.png", "attention.png")


@dataclass(frozen=True)
class Setting:
    """The setting of all rows, as the command line has it.

    Attributes:
        out: Folder of the runs.
        data: Folder that holds the folders of data.
        minutes: Minutes of training a model; 0 = as many epochs as the preset has.
        results: Folder of the results.
        cards: Folder of the cards.
        threads: CPU threads.
        again: Train anew what was trained before.
        flags: More flags of the scripts, over the presets'.
    """

    out: Path
    data: Path
    minutes: float = 0.0
    results: Path = RESULTS
    cards: Path = CARDS
    threads: int = 1
    again: bool = False
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.minutes < math.inf:
            raise ValueError(f"`minutes` must be at least 0, but is {self.minutes}.")
        if self.threads < 1:
            raise ValueError(f"`threads` must be at least 1, but is {self.threads}.")

    def command(self, row: Row) -> str:
        """Write the command of a row, without the folders of this machine."""
        words = ["python benchmarks/reproduce.py", row.name]
        words += [] if row.like or not self.minutes else ["--minutes", f"{self.minutes:g}"]
        words += ["--data", self.data.name]
        words += [] if self.threads == 1 else ["--threads", str(self.threads)]
        return " ".join([*words, *(["--", *self.flags] if self.flags else [])])


def run_row(row: Row, setting: Setting) -> Record:
    """Train the model of a row, or go on with it, and store the result and the card.

    Raises:
        RunFailedError: If training was stopped.
        ValueError: If something given does not fit.
    """
    folder = train(row, setting)
    record = make_record(row, folder, setting)
    write_result(row, record, setting.results)
    if row.has_card:
        keep_card(folder, setting.cards / row.name)
    return record


# ------------------------------------------------------------------ training


def train(row: Row, setting: Setting) -> Path:
    """Train the model of a row, or go on with it, and return its folder.

    Raises:
        RunFailedError: If training was stopped.
    """
    folder = setting.out / row.name
    way = ["--overwrite_output_dir"] if setting.again else ["--resume", "auto"]
    argv = [*training_flags(row, folder, setting), *way, *setting.flags]
    if row.arch == "qrnn":
        status: int = load_script(row.task).main(argv)
    else:
        status = run_control(row.task, row.arch, argv)
    if status != 0:
        raise RunFailedError(status)
    return folder


def training_flags(row: Row, folder: Path, setting: Setting) -> list[str]:
    """Write the flags of a row's script: the preset's, its data's, and its budget's."""
    given: dict[str, Any] = {
        "config": CONFIGS / f"{row.config}.yaml",
        "output_dir": folder,
        "seed": row.seed,
        "num_threads": setting.threads,
        **prepare(row, setting),
    }
    if row.teachers:
        given["distilled_file"] = distil(row, setting)
    flags = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return [*flags, *row.flags, *_budget(row, setting), "--cpu"]


def prepare(row: Row, setting: Setting) -> dict[str, Path]:
    """Give the files of a row's data, by flag.

    Raises:
        ValueError: If one is not there.
    """
    folder = setting.data / row.data
    files = {flag: folder / name for flag, name in FILES[row.data].items()}
    for path in files.values():
        if not path.is_file():
            raise ValueError(f"`data` must hold {row.data}/{path.name}, but '{path}' is missing.")
    return files


def _budget(row: Row, setting: Setting) -> list[str]:
    """Write the flags of a row's budget; a control's is what the row it is compared with used."""
    minutes = setting.minutes
    if row.like:
        found = read_result(parse_row(row.like), setting.results)
        if found is None:
            raise ValueError(f"{row.like} must have a result before {row.name}, but has none.")
        if row.budget == "updates":
            return ["--max_steps", str(found["updates"])]
        minutes = found["seconds"] / 60
    if not minutes:
        return []
    # A decay by epochs keeps the epochs of its preset; any other is spread over the minutes.
    text = (CONFIGS / f"{row.config}.yaml").read_text(encoding="utf-8")
    epochs = [] if "schedule: epochs" in text else ["--epochs", str(_ENDLESS)]
    return ["--max_minutes", f"{minutes:g}", *epochs]


def distil(row: Row, setting: Setting) -> Path:
    """Let the ensemble of a row's teachers translate its training sources."""
    target = setting.out / "data" / f"{row.name}.tsv"
    teachers = [str(setting.out / name) for name in row.teachers]
    for teacher in teachers:
        if not (Path(teacher) / "training.json").is_file():
            raise ValueError(f"'{teacher}' must be trained before {row.name}, but is not.")
    if not target.is_file() or setting.again:
        target.parent.mkdir(parents=True, exist_ok=True)
        source = prepare(row, setting)["train_source"]
        files = ["--source", str(source), "-o", str(target)]
        status = run_command(["distill", *teachers, "--num_beams", "5", *files])
        if status != 0:
            raise RunFailedError(status)
    return target


# ------------------------------------------------------------------ results


def make_record(row: Row, folder: Path, setting: Setting) -> Record:
    """Make the result of a row of what its run wrote."""
    run, test = read_json(folder / "run.json"), read_json(folder / "test.json")
    ended, records = read_json(folder / "training.json"), read_records(folder)
    if row.metric not in test:
        raise ValueError(f"'{folder / 'test.json'}' must hold {row.metric}, but does not.")
    where = circumstances()
    names = [metric.name for metric in RECORDED]
    kept = {*names, *(f"{x}_{y}" for x in names for y in ("signature", "confidence"))}
    valid = [x[row.metric] for x in records if x.get("is_best") and row.metric in x]
    return {
        "row": row.name,
        "command": setting.command(row),
        **where,
        # Training set its own number of threads, which this process need not have.
        "hardware": {**where["hardware"], "threads": setting.threads},
        "precision": run["options"].get("mixed_precision", "no"),
        "seed": row.seed,
        "parameters": run["parameters"],
        "updates": ended["step"],
        "epochs": epochs_of(ended),
        "seconds": round(ended["seconds"], 3),
        "valid": valid[-1] if valid else None,
        **{name: value for name, value in test.items() if name in kept},
    }


def epochs_of(ended: Record) -> float | None:
    """Count the passes over the data that a run made; None where it did not end the first."""
    if ended["epoch"] == 0:
        return None
    # The batches of a whole one, of which the last may have had a part.
    whole = (ended["step"] - ended["batch"]) / ended["epoch"]
    return round(ended["step"] / whole, 2)


def keep_card(folder: Path, target: Path) -> None:
    """Copy the card of a run, and the numbers and pictures that it is made of."""
    target.mkdir(parents=True, exist_ok=True)
    for name in _CARD_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
