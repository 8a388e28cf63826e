"""Trains, judges and stores the rows of the pronunciation benchmark.

Every model is trained by `run_task`, in a folder of its own below `Setting.out`, and goes on where
it was interrupted.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from equal_sizes import count_parameters
from pronunciation_data import (
    CMUDICT,
    LANGUAGES,
    Entry,
    Splits,
    judge,
    load_splits,
    without_stress,
    write_table,
)
from pronunciation_models import TASKS, load_model
from pronunciation_rivals import RIVALS, ask
from pronunciation_rows import JOINT, Row, read_result, write_result
from results import Record
from stored_rows import RunFailedError, circumstances

from hf_qrnn.cli.main import main as run_command
from hf_qrnn.data.json_files import read_json
from hf_qrnn.data.reading import read_lines
from hf_qrnn.data.symbols import encode_sources
from hf_qrnn.data.tokenization import decode_batch, load_tokenizer
from hf_qrnn.engine.choice import choose_engine
from hf_qrnn.metrics.edits import split_tokens
from hf_qrnn.speed.timing import using_threads
from hf_qrnn.training.run import run_task
from hf_qrnn.translation.search import generate_hypotheses
from hf_qrnn.translation.translator import load_translator

RECIPE = Path(__file__).parents[1] / "scripts" / "configs" / "transduction.yaml"
BEAMS, BATCH_SIZE = 5, 64
TIMED_ALONE = 100
"""Words that are pronounced one by one, for the time of one."""
_MANY_EPOCHS = 1_000_000  # so that minutes are what ends a run

TRANSFORMER_RECIPE = {
    # Wu, Cotterell and Hulden 2021: batches of 400 words (about twelve tokens a side with their
    # padding), Adam, label smoothing 0.1, dropout 0.3. Theirs warms up for 4,000 of 20,000 updates
    # and decays by the inverse square root; here too for a fifth (`_warm_up`), and decays to zero
    # as the common loop does, which suits a fixed budget better.
    "max_tokens": 4800,
    "optimizer": "adamw",
    "weight_decay": 0.0,
    "learning_rate": 1e-3,
    "adam_beta2": 0.98,
    "label_smoothing": 0.1,
    "dropout": 0.3,
}
_MOST_WARM_UP, _LEAST_WARM_UP = 4000, 50
_UPDATES_PER_MINUTE = 60  # of such batches on one core


@dataclass(frozen=True)
class Setting:
    """The setting of all rows, as the command line has it.

    Attributes:
        out: Folder of the runs.
        results: Folder of the results.
        data: Folder of the shared task's files.
        minutes: Minutes of training a model; a joint one has as many for each language.
        updates: Updates of the rows of equal updates; 0 = as many as the QRNN's row made.
        again: Train anew what was trained before.
        threads: CPU threads.
        words: A list of words without pronunciations, a line each, to distil from as well.
        n_best: Pronunciations of a word that a student learns from.
        members: Models of an ensemble, and teachers of a student.
        espeak: The program espeak-ng.
        flags: More flags of `scripts/train_translation.py`, over the recipe's.
        begun: Folders that this command has begun anew: the languages share a joint model.
    """

    out: Path
    results: Path
    data: Path | None = None
    minutes: float = 10.0
    updates: int = 0
    again: bool = False
    threads: int = 1
    words: Path | None = None
    n_best: int = 1
    members: int = 5
    espeak: str = "espeak-ng"
    flags: tuple[str, ...] = ()
    begun: set[Path] = field(default_factory=set)

    def __post_init__(self) -> None:
        if not self.minutes > 0:
            raise ValueError(f"`minutes` must be above 0, but is {self.minutes}.")
        for name, least in (("updates", 0), ("threads", 1), ("n_best", 1), ("members", 2)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"`{name}` must be at least {least}, but is {getattr(self, name)}."
                )
        if self.data is not None and not self.data.is_dir():
            raise ValueError(f"`data` must be a folder, but '{self.data}' is none.")
        if self.words is not None and not self.words.is_file():
            raise ValueError(f"`words` must be a file, but '{self.words}' is none.")

    def command(self, row: Row) -> str:
        """Write the command of a row, without the folders of this machine."""
        words = ["python benchmarks/pronunciation.py", row.name]
        if row.model not in RIVALS:
            words += ["--minutes", f"{self.minutes:g}"]
        if row.budget == "updates" and self.updates:
            words += ["--updates", str(self.updates)]
        if row.data != CMUDICT:
            words += ["--data", "g2p_sigmorphon2021" if self.data is None else self.data.name]
        if row.variant == "distilled":
            words += [] if self.words is None else ["--words", self.words.name]
            words += [] if self.n_best == 1 else ["--n_best", str(self.n_best)]
        if row.variant in ("ensemble", "distilled") and self.members != 5:
            words += ["--members", str(self.members)]
        if self.threads != 1:
            words += ["--threads", str(self.threads)]
        return " ".join([*words, *(["--", *self.flags] if self.flags else [])])


def run_row(row: Row, setting: Setting) -> Record:
    """Train what a row needs, judge it on its words, and store the result.

    Raises:
        RunFailedError: If training was stopped.
        ValueError: If something given does not fit.
        MissingRivalError: If a rival is not there.
    """
    splits = load_splits(row.data, setting.data)
    with using_threads(setting.threads):
        judge_row = _judge_rival if row.model in RIVALS else _judge_model
        record = judge_row(row, splits, setting)
    write_result(row, record, setting.results)
    return record


# ------------------------------------------------------------------ training


def prepare(data: str, setting: Setting) -> Path:
    """Write the tables that a run of `data` trains on, and return their folder."""
    folder = setting.out / "data" / data
    if data == JOINT:
        parts = {language: load_splits(language, setting.data) for language in LANGUAGES}
        write_table(folder / "train.tsv", {x: splits.train for x, splits in parts.items()})
        # As many words of each, so that a language with more does not choose the model alone.
        few = {x: _first_of_each(splits.valid[:100]) for x, splits in parts.items()}
        write_table(folder / "valid.tsv", few)
        return folder
    splits = load_splits(data, setting.data)
    write_table(folder / "train.tsv", {"": splits.train})
    write_table(folder / "valid.tsv", {"": _first_of_each(splits.valid)})
    if splits.judged is not splits.valid:
        write_table(folder / "test.tsv", {"": splits.judged})
    return folder


def _first_of_each(words: Sequence[Entry]) -> list[Entry]:
    """Give every word its first pronunciation alone: a validation counts a word once."""
    return [Entry(entry.word, entry.phones[:1]) for entry in words]


def train(row: Row, setting: Setting, extra: Sequence[str] = ()) -> Path:
    """Train the model of a row, or go on with it, and return its folder.

    Raises:
        RunFailedError: If training was stopped.
    """
    joint = row.variant == JOINT
    folder = setting.out / (f"{JOINT}-{row.model}-{row.seed}" if joint else row.name)
    # One that was trained before, and is judged again, is not trained again.
    anew = setting.again and folder not in setting.begun
    setting.begun.add(folder)
    way = ["--overwrite_output_dir"] if anew else ["--resume", "auto"]
    flags = [*training_flags(row, folder, setting), *extra, *way, *setting.flags]
    status = run_task(TASKS[row.model], flags)
    if status != 0:
        raise RunFailedError(status)
    if row.model != "qrnn":
        # It is a card of a QRNN, whatever model is in the folder.
        (folder / "README.md").unlink(missing_ok=True)
    return folder


def training_flags(row: Row, folder: Path, setting: Setting) -> list[str]:
    """Write the flags of `run_task` for a row: the recipe's, and what the row is about."""
    joint = row.variant == JOINT
    tables = prepare(JOINT if joint else row.data, setting)
    given: dict[str, Any] = {
        "config": RECIPE,
        "output_dir": folder,
        "train_file": tables / "train.tsv",
        "valid_file": tables / "valid.tsv",
        "source_lang": "word",
        "target_lang": "phones",
        "seed": row.seed,
        "num_threads": setting.threads,
    }
    if joint:
        given["language_tag"] = "language"
    if row.model == "transformer":
        given |= {**TRANSFORMER_RECIPE, "warmup_steps": _warm_up(row, setting)}
    if row.budget == "updates":
        given["max_steps"] = _updates(row, setting)
    else:
        given["max_minutes"] = setting.minutes * (len(LANGUAGES) if joint else 1)
        given["epochs"] = _MANY_EPOCHS
    flags = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return [*flags, "--cpu"]


def _warm_up(row: Row, setting: Setting) -> int:
    """Return a fifth of the updates that are to be expected; a resumed run must have the same."""
    if row.budget == "updates":
        expected: float = _updates(row, setting)
    else:
        expected = setting.minutes * _UPDATES_PER_MINUTE
    return min(_MOST_WARM_UP, max(_LEAST_WARM_UP, round(expected / 5)))


def _updates(row: Row, setting: Setting) -> int:
    """Return the number of updates of a row of equal updates."""
    if setting.updates:
        return setting.updates
    model = replace(row, model="qrnn", budget="minutes")
    found = read_result(model, setting.results)
    if found is None:
        raise ValueError(
            f"`updates` must be given for {row.name}, or {model.name} have a result, but neither "
            "is."
        )
    return int(found["updates"])


def _folders(row: Row, setting: Setting) -> list[Path]:
    """Train the models of a row; an ensemble has one for each seed, and so has a teacher."""
    if row.variant not in ("ensemble", "distilled"):
        return [train(row, setting)]
    # The members are rows of their own: `again` is about this one.
    kept = replace(setting, again=False)
    seeds = range(row.seed, row.seed + setting.members)
    members = [train(replace(row, variant="single", seed=seed), kept) for seed in seeds]
    if row.variant == "ensemble":
        return members
    pairs = _distil(row, members, setting)
    return [train(row, setting, ["--distilled_file", str(pairs)])]


def _distil(row: Row, teachers: Sequence[Path], setting: Setting) -> Path:
    """Let the teachers pronounce the training words, and those of `setting.words`."""
    splits = load_splits(row.data, setting.data)
    words = [entry.word for entry in splits.train]
    if setting.words is not None:
        held_out = {entry.word for entry in (*splits.valid, *splits.judged)}
        lines = setting.words.read_text(encoding="utf-8").splitlines()
        # A word that is judged may be in any list of words, but must not be practised.
        words += [x for x in map(str.strip, lines) if x and x not in held_out]
    folder = setting.out / "data" / row.name
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "words.txt"
    target = folder / f"distilled-{len(teachers)}-{setting.n_best}.tsv"
    text = "".join(f"{word}\n" for word in dict.fromkeys(words))
    if not target.is_file() or setting.again or source.read_text(encoding="utf-8") != text:
        source.write_text(text, encoding="utf-8")
        target.unlink(missing_ok=True)
        names = [str(teacher) for teacher in teachers]
        files = ["--source", str(source), "-o", str(target)]
        status = run_command(["distill", *names, "--n_best", str(setting.n_best), *files])
        if status != 0:
            raise RunFailedError(status)
    return target


# ------------------------------------------------------------------ judging

Speaker = Callable[[Sequence[str]], list[str]]


def load_speaker(row: Row, folders: Sequence[Path]) -> Speaker:
    """Load the models of a row as a function of words, the QRNN's as any user would."""
    if row.model == "qrnn":
        language: dict[str, Any] = {"language": row.data} if row.variant == JOINT else {}
        names = [str(folder) for folder in folders]
        engine = choose_engine("auto", names, "cpu").engine
        translator = load_translator(*names, device="cpu") if engine is None else engine

        def speak(words: Sequence[str]) -> list[str]:
            found = translator.translate(words, num_beams=BEAMS, batch_size=BATCH_SIZE, **language)
            return [best.text for best, *_ in found]

        return speak
    model, tokenizer = load_model(row.model, folders[0]), load_tokenizer(str(folders[0]))

    def speak_control(words: Sequence[str]) -> list[str]:
        sources = encode_sources(tokenizer, words)
        found = generate_hypotheses(model, sources, num_beams=BEAMS, batch_size=BATCH_SIZE)
        return decode_batch(tokenizer, [best.ids for best, *_ in found])

    return speak_control


def _judge_model(row: Row, splits: Splits, setting: Setting) -> Record:
    folders = _folders(row, setting)
    speak = load_speaker(row, folders)
    words = [entry.word for entry in splits.judged]
    alone = [_seconds(speak, [word])[0] for word in words[:TIMED_ALONE]]
    seconds, texts = _seconds(speak, words)
    ended = [read_json(folder / "training.json") for folder in folders]
    models = [load_model(row.model, folder) for folder in folders]
    budget = {"minutes": setting.minutes} if row.budget == "minutes" else {}
    _keep_hypotheses(row, splits, texts, setting)
    return {
        **_about(row, splits, setting),
        **budget,
        "models": len(folders),
        "parameters": sum(map(count_parameters, models)),
        "updates": sum(state["step"] for state in ended),
        "seconds": round(sum(state["seconds"] for state in ended), 2),
        "beams": BEAMS,
        "signature": signature(row.data, splits, beams=BEAMS),
        **judge(texts, splits.judged, stress=row.data == CMUDICT),
        "words_per_second": round(len(words) / seconds, 1),
        "ms_per_word": round(1e3 * statistics.median(alone), 2),
    }


def _seconds(speak: Speaker, words: Sequence[str]) -> tuple[float, list[str]]:
    """Speak, and return the seconds of CPU time: other programs on the machine do not count."""
    started = time.process_time()
    texts = speak(words)
    return time.process_time() - started, texts


def _judge_rival(row: Row, splits: Splits, setting: Setting) -> Record:
    answer = ask(row.model, [entry.word for entry in splits.judged], espeak=setting.espeak)
    _keep_hypotheses(row, splits, answer.phones, setting)
    return {
        **_about(row, splits, setting),
        "about": answer.about,
        "notes": answer.notes,
        "unmapped": len(answer.unmapped),
        "signature": signature(row.data, splits),
        **judge(answer.phones, splits.judged, stress=True),
        "words_per_second": round(len(answer.phones) / answer.seconds, 1),
    }


def _about(row: Row, splits: Splits, setting: Setting) -> Record:
    """Say of a result what another person needs to repeat it."""
    return {
        "row": row.name,
        "command": setting.command(row),
        "data": splits.about,
        **circumstances(),
        **({} if row.model in RIVALS else {"seed": row.seed}),
    }


def signature(data: str, splits: Splits, *, beams: int | None = None) -> str:
    """Write what a word error rate means, as sacrebleu's signatures do."""
    several = any(len(entry.phones) > 1 for entry in splits.judged)
    parts = [f"words:{len(splits.judged)}", f"refs:{'any' if several else 1}", "unit:phone"]
    parts += ["stress:no"] if data == CMUDICT else []
    parts += [] if beams is None else [f"beams:{beams}"]
    return "|".join([*parts, f"version:hf_qrnn-{version('hf_qrnn')}"])


# ------------------------------------------------------------------ errors


def _hypotheses_path(row: Row, setting: Setting) -> Path:
    return setting.out / "hypotheses" / f"{row.name}.tsv"


def _keep_hypotheses(row: Row, splits: Splits, texts: Sequence[str], setting: Setting) -> None:
    """Keep what was said beside the runs: the data are not free to be kept with the results."""
    path = _hypotheses_path(row, setting)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        "\t".join([entry.word, " ".join(split_tokens(text)), *entry.phones]) + "\n"
        for entry, text in zip(splits.judged, texts, strict=True)
    ]
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


def errors(row: Row, setting: Setting, number: int) -> str:
    """Show errors of a row for a reader: word, what was said, and what is right, a line each.

    Args:
        row: The row; of CMUdict stress does not count.
        setting: Where its hypotheses are.
        number: Errors to show, drawn by a fixed seed; 0 = all.

    Raises:
        FileNotFoundError: If the row was not judged here.
    """
    path = _hypotheses_path(row, setting)
    if not path.is_file():
        raise FileNotFoundError(
            f"`errors` must be of a row that was run with this --out, but '{path}' is missing."
        )
    change = without_stress if row.data == CMUDICT else str
    wrong = []
    for line in read_lines(path):
        word, *phones = line.split("\t")
        said, *right = dict.fromkeys(map(change, phones)) if len(phones) > 1 else phones
        if change(phones[0]) not in map(change, phones[1:]):
            wrong.append(f"{word}\t{said}\t{' | '.join(right)}")
    drawn = wrong if number == 0 else random.Random(0).sample(wrong, min(number, len(wrong)))
    return "\n".join([*sorted(drawn), f"{len(drawn)} of {len(wrong)} errors"])
