"""The ladder: one change of the translation recipe at a time, at equal time.

    python benchmarks/ladder.py --data nmt_multi30k --minutes 8 base deep-6-2
    python benchmarks/ladder.py --data nmt_multi30k --minutes 8 --all   # rungs without a result
    python benchmarks/ladder.py --list                                  # 1 if one is missing
    python benchmarks/ladder.py --table                                 # of docs/ladder.md

A rung is `scripts/configs/translation_modern.yaml` with a few flags changed. Every rung trains for
the same minutes on one core and is judged by greedy search on the validation sentences, as all
choices are: test sentences choose nothing. A run that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sacrebleu
from ending import end_process
from ladder_rungs import RESULTS, RUNGS, Rung, find_rung, keep, listing, markdown, read_results
from results import Record
from stored_rows import OneSentenceParser, circumstances

from hf_qrnn.data.flags import typed
from hf_qrnn.data.json_files import read_json, read_json_lines
from hf_qrnn.data.reading import read_lines
from hf_qrnn.engine.translator import Translator
from hf_qrnn.speed.timing import using_threads
from hf_qrnn.training.run import run_task
from hf_qrnn.training.translation_task import TranslationTask

RECIPE = Path(__file__).parents[1] / "scripts" / "configs" / "translation_modern.yaml"
DECODED = 32
"""Sentences of a batch when decoding is timed."""


@dataclass(frozen=True)
class Setting:
    """The setting of all rungs.

    Attributes:
        data: Folder with train and val of de and en: `train.de` as text, .gz or .xz.
        out: Folder of the runs.
        results: File of the results.
        minutes: Minutes of training.
        seed: Seed of the weights and of the order of the data.
        again: Train anew what was trained before.
    """

    data: Path | None
    out: Path
    results: Path
    minutes: float
    seed: int
    again: bool

    def __post_init__(self) -> None:
        if self.data is not None and not self.data.is_dir():
            raise ValueError(f"`data` must be a folder, but '{self.data}' is none.")
        if not self.minutes > 0:
            raise ValueError(f"`minutes` must be above 0, but is {self.minutes}.")

    def file(self, name: str) -> Path:
        """Find a file of the data, packed or not.

        Raises:
            ValueError: If it is not there.
        """
        if self.data is None:
            raise ValueError("`data` must be given to run a rung, but is not.")
        for ending in ("", ".xz", ".gz"):
            if (path := self.data / f"{name}{ending}").is_file():
                return path
        raise ValueError(f"`data` must have a file {name}[.xz|.gz], but '{self.data}' has none.")

    def command(self, rung: Rung) -> str:
        """Write the command that makes a rung's result."""
        seed = [] if self.seed == 0 else ["--seed", str(self.seed)]
        data = "nmt_multi30k" if self.data is None else self.data.name
        given = ["--data", data, "--minutes", f"{self.minutes:g}", *seed]
        return " ".join(["python benchmarks/ladder.py", *given, rung.name])


def run_rung(rung: Rung, setting: Setting) -> Record | None:
    """Train a rung's model, judge it, and keep the result; None if training ended badly.

    What ended it has been said then.
    """
    folder = setting.out / rung.name
    with using_threads(1):
        if run_task(TranslationTask, training_flags(rung, folder, setting)) != 0:
            return None
        record = {**_about(rung, setting), **_trained(folder), **_judged(folder, setting)}
    keep(record, setting.results)
    return record


def training_flags(rung: Rung, folder: Path, setting: Setting) -> list[str]:
    """Write the flags of `scripts/train_translation.py` for a rung."""
    given: dict[str, Any] = {
        "config": RECIPE,
        "output_dir": folder,
        "train_source": setting.file("train.de"),
        "train_target": setting.file("train.en"),
        "valid_source": setting.file("val.de"),
        "valid_target": setting.file("val.en"),
        "seed": setting.seed,
        "max_minutes": setting.minutes,
        "epochs": 100_000,  # so that minutes are what ends a run
        "mixed_precision": "auto",
        "eval_sentences": 200,
        "num_threads": 1,
    }
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    way = ["--overwrite_output_dir"] if setting.again else ["--resume", "auto"]
    return [*words, *rung.flags, *way, "--cpu"]


def _about(rung: Rung, setting: Setting) -> Record:
    return {
        "bench": "ladder",
        "rung": rung.name,
        "command": setting.command(rung),
        "flags": list(rung.flags),
        "minutes": setting.minutes,
        "seed": setting.seed,
        **circumstances(),
    }


def _trained(folder: Path) -> Record:
    """Say what training did; a rate is of the characters of both sides, the middle one of all."""
    state, run = read_json(folder / "training.json"), read_json(folder / "run.json")
    kept = [x for x in read_json_lines(folder / "metrics.jsonl") if x["kind"] == "train"]
    rates = sorted(float(x["chars_per_second"]) for x in kept)
    return {
        "parameters": run["parameters"],
        "updates": state["step"],
        "seconds": round(state["seconds"], 1),
        "train_chars_per_second": round(rates[len(rates) // 2]),
    }


def _judged(folder: Path, setting: Setting) -> Record:
    """Translate the validation sentences by the engine, in CPU time of one thread."""
    sources, references = (list(read_lines(setting.file(f"val.{x}"))) for x in ("de", "en"))
    translator = Translator(folder)
    translator.translate(sources[:DECODED], num_beams=1, batch_size=DECODED)  # warm
    started = time.process_time()
    found = translator.translate(sources, num_beams=1, batch_size=DECODED)
    seconds = time.process_time() - started
    texts = [best.text for best, *_ in found]
    bleu, chrf = sacrebleu.BLEU(), sacrebleu.CHRF()
    return {
        "bleu": round(bleu.corpus_score(texts, [references]).score, 2),
        "chrf": round(chrf.corpus_score(texts, [references]).score, 2),
        "signature": str(bleu.get_signature()),
        "sentences": len(texts),
        "decode_chars_per_second": round(sum(map(len, texts)) / seconds),
    }


# ------------------------------------------------------------------ command line


def make_parser() -> argparse.ArgumentParser:
    """Make the command line."""
    parser = OneSentenceParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("rungs", nargs="*", metavar="RUNG", help=f"of {', '.join(rung.name for rung in RUNGS)}")
    add("--all", action="store_true", help="run every rung that has no result")
    add("--again", action="store_true", help="run rungs that have a result too, from the start")
    add("--minutes", type=float, default=8.0, help="minutes of training a model (8)")
    add("--seed", type=int, default=0, help="seed of the runs (0)")
    add("--data", type=Path, help="folder with train.de, train.en, val.de, val.en")
    add("--out", type=Path, default=Path("runs/ladder"), help="folder of the runs")
    add("--results", type=Path, default=RESULTS, help="file of the results")
    add("--list", action="store_true", help="print every rung with its command and result")
    add("--table", action="store_true", help="print the table of docs/ladder.md")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; 1 for a missing or failed rung, 2 after a mistake."""
    options = make_parser().parse_args(argv)
    names = ("data", "out", "results", "minutes", "seed", "again")
    try:
        with typed({name: f"--{name}" for name in names}):
            return _work(options, Setting(**{name: getattr(options, name) for name in names}))
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _work(options: argparse.Namespace, setting: Setting) -> int:
    rungs = [find_rung(name) for name in options.rungs] + (list(RUNGS) if options.all else [])
    if not rungs and not options.list and not options.table:
        raise ValueError("a RUNG, --all, --list or --table must be given, but none is.")
    status = 0
    for rung in rungs:
        if rung.name in read_results(setting.results) and not setting.again:
            print(f"skipped {rung.name}: it has a result (--again runs it anew)", flush=True)
            continue
        record = run_rung(rung, setting)
        if record is None:
            status = 1
            continue
        print(f"{rung.name}: BLEU {record['bleu']:.2f}, chrF {record['chrf']:.2f}", flush=True)
    results = read_results(setting.results)
    if options.table:
        print(markdown(results))
    if options.list:
        text, missing = listing(results, setting.command)
        print(text)
        status = max(status, int(missing > 0))
    return status


if __name__ == "__main__":
    end_process(main)
