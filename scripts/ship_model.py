#!/usr/bin/env python
"""Put a trained model into `models/`, the box that comes with the repository.

    python scripts/ship_model.py --run runs/cmudict --name pronounce-en --sample test.tsv
    python scripts/ship_model.py --run runs/tatoeba --name de-en --sources test.de --targets test.en
    python scripts/ship_model.py --refresh

The first two commands save the run's best model with small weights, its tokenizer, card and
numbers, and a sample that a test scores again: the first lines of a table of words and phones, or
of two files of sentences, with the scores of the saved model on it. Of a translator the card is
written anew: scores of the weights that are saved, the first sentences of the test set with their
translations, what `--other` test sets score, and thirty errors by kind. `--write_errors` writes the
list of these, a person fills its first column, and `--errors` takes it. The last command writes the
code that lies beside the weights anew, after a change in `hf_qrnn/model`: a folder of the box is
complete, so that it can be copied, loaded and pushed as any other.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from hf_qrnn.data.flags import typed
from hf_qrnn.data.json_files import read_json
from hf_qrnn.data.reading import TextPair, read_lines, read_parallel
from hf_qrnn.data.translations import one_line
from hf_qrnn.engine import Translator
from hf_qrnn.hub.files import put_custom_generate
from hf_qrnn.hub.push import without_folders
from hf_qrnn.metrics.edits import token_error_rate, word_error_rate
from hf_qrnn.metrics.scoring import METRICS, Score, score_translations
from hf_qrnn.metrics.table import VALIDATED
from hf_qrnn.model.modeling_qrnn import QRNNForConditionalGeneration
from hf_qrnn.pronunciation import Pronouncer
from hf_qrnn.training.cards import model_card
from hf_qrnn.training.stopping import exit_status
from hf_qrnn.translation.lengths import usual_length

BOX = Path(__file__).resolve().parents[1] / "models"
CODE = BOX.parent / "hf_qrnn" / "model"
_RECORDS = ("README.md", "metrics.jsonl", "learning_curve.png", "attention.png", "test.json")
SAMPLE, SCORES, ERRORS, NUM_BEAMS = "sample.tsv", "sample.json", "errors.tsv", 5
_NUM_ERRORS, _NUM_SHOWN = 30, 10
NUM_RECORDS = 120  # of training: one for five dots of the learning curve
_WEIGHTS = ("bfloat16", "int8", "float32")
_ERRORS_HEAD = "kind\tsource\treference\ttranslation"
_OUT_OF_DOMAIN = """\
The model has not learnt from such texts, and is out of its domain there: these figures say how far
it reaches, and are none to compare with models that were trained for them."""


def main() -> int:
    """Add a model to the box, or write the box's code anew."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--refresh", action="store_true", help="write the code beside all models")
    add("--run", type=Path, help="folder of a finished run")
    add("--name", help="folder of the model in the box")
    add("--box", type=Path, default=BOX, help="the box (models/ of the repository)")
    add("--lines", type=int, default=300, help="sources of the sample (300)")
    add("--weights", default="bfloat16", help=f"{', '.join(_WEIGHTS)} (bfloat16)")
    add(
        "--sample",
        type=Path,
        help="of a pronouncer: table (source TAB target [TAB language]) for the sample",
    )
    add("--sources", type=Path, help="of a translator: the test set's sentences")
    add("--targets", type=Path, help="their translations")
    other = ("NAME", "SOURCES", "TARGETS")
    add("--other", nargs=3, metavar=other, action="append", help="a test set out of its domain")
    add("--train_source", type=Path, help="training sentences, to measure how long is usual")
    add("--title", help="heading of the card (the run's)")
    add("--about", type=Path, help="text on data and limits for the card")
    add("--license_file", type=Path, help="becomes LICENSE in the folder")
    for name in ("data_name", "data_license", "model_license"):
        add(f"--{name}", help="for the card (the run's)")
    add("--write_errors", type=Path, help="write the first thirty errors, for a person to judge")
    add("--errors", type=Path, help="the same file with a kind in the first column of each line")
    return exit_status(lambda: run(parser.parse_args()))


def run(args: argparse.Namespace) -> None:
    """Do what the command line says."""
    if args.refresh == (args.run is not None):
        raise ValueError(
            "Either `--run` with `--name` and `--sample`, or `--refresh` must be given."
        )
    if args.refresh:
        for config in sorted(args.box.glob("*/config.json")):
            write_code(config.parent)
        return
    is_translator = args.sources is not None and args.targets is not None
    if args.name is None or is_translator == (args.sample is not None):
        raise ValueError("`--run` needs `--name`, and `--sample` or `--sources` with `--targets`.")
    if args.lines < 1:
        raise ValueError(f"`--lines` must be at least 1, but is {args.lines}.")
    if args.weights not in _WEIGHTS:
        raise ValueError(f"`--weights` must be one of {', '.join(_WEIGHTS)}, but is {args.weights}")
    targets: Sample = {}
    if args.sample is not None:
        with typed(path="--sample"):
            targets = read_sample(read_lines(args.sample), args.lines)
    texts = None if args.sample is not None else Texts(args)
    if not (args.run / "model.safetensors").is_file():
        raise ValueError(f"`--run` must be the folder of a finished run, but is '{args.run}'.")
    folder = args.box / args.name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".shipping-") as place:
        staged = Path(place) / args.name
        # A licence that was put there by hand stays.
        _copy(folder, staged, "LICENSE")
        save(args.run, staged, args)
        if texts is None:
            finish_pronouncer(args.run, staged, targets)
        else:
            finish_translator(args, staged, texts)
        # The card is of all records.
        thin_records(staged)
        if folder.exists():
            folder.rename(Path(place) / "old")
        staged.rename(folder)


class Texts:
    """All that a translator's flags name, read before anything is written.

    Args:
        args: The command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.test = _read_pairs(args.sources, args.targets)
        others = args.other or []
        self.others = {name: _read_pairs(*map(Path, files)) for name, *files in others}
        self.train = [] if args.train_source is None else read_lines(args.train_source)
        self.about = "" if args.about is None else "\n".join(read_lines(args.about)).strip()
        self.errors = [] if args.errors is None else _read_errors(args.errors)
        self.license = None if args.license_file is None else args.license_file.read_bytes()


# ------------------------------------------------------------------ any model


def save(run_folder: Path, folder: Path, args: argparse.Namespace) -> None:
    """Save a run's best model with the weights that are wanted, its tokenizer and its code."""
    folder.mkdir(exist_ok=True)
    model = QRNNForConditionalGeneration.from_pretrained(run_folder, dtype=torch.float32)
    if args.weights == "int8":
        # Imported here: nothing else needs it.
        from hf_qrnn.engine.quantize import quantize

        model.save_pretrained(folder.parent / "float32")
        AutoTokenizer.from_pretrained(run_folder).save_pretrained(folder.parent / "float32")
        quantize(folder.parent / "float32", folder.parent / "int8")
        for path in (folder.parent / "int8").iterdir():
            shutil.copyfile(path, folder / path.name)
    else:
        model.to(getattr(torch, args.weights)).save_pretrained(folder)
        AutoTokenizer.from_pretrained(run_folder).save_pretrained(folder)
    # The sample is scored with as many, and so whoever asks for nothing else gets what was scored.
    path = folder / "generation_config.json"
    _write_json(path, {**read_json(path), "num_beams": NUM_BEAMS})
    write_code(folder)


def write_code(folder: Path) -> None:
    """Make the code in a folder of the box equal the package's; all its models are translators."""
    for old in folder.glob("*_qrnn.py"):
        old.unlink()
    for path in sorted(CODE.glob("*_qrnn.py")):
        shutil.copyfile(path, folder / path.name)
    put_custom_generate(folder)


def thin_records(folder: Path) -> None:
    """Leave as many training records in metrics.jsonl as the learning curve can show.

    The lines that stay are as they were: all that are no training record, the last training record,
    and before it others at equal distances.
    """
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    train = [i for i, line in enumerate(lines) if json.loads(line)["kind"] == "train"]
    every = math.ceil(len(train) / NUM_RECORDS) or 1
    dropped = set(train) - set(train[::-1][::every])
    kept = "".join(f"{line}\n" for i, line in enumerate(lines) if i not in dropped)
    path.write_text(kept, encoding="utf-8")


def _copy(source: Path, target: Path, *names: str) -> None:
    """Copy the files that are there."""
    target.mkdir(exist_ok=True)
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


# ------------------------------------------------------------------ pronouncers


Sample = dict[tuple[str, str], list[str]]
"""The right targets of a source of a language; "" where the model has no tags of languages."""


def read_sample(rows: list[str], lines: int) -> Sample:
    """Read the targets of the first sources of a table."""
    targets: Sample = {}
    tabs = 2 if rows and rows[0].count("\t") == 2 else 1
    for number, row in enumerate(rows, 1):
        if row.count("\t") != tabs:
            rule = "one tab, or two as the first" if tabs == 1 else "two tabs as the first"
            raise ValueError(f"line {number} of `--sample` must have {rule}, but is {row!r}.")
        source, target, language = [*row.split("\t"), ""][:3]
        if (source, language) in targets or len(targets) < lines:
            targets.setdefault((source, language), []).append(target)
    if not targets:
        raise ValueError("`--sample` must have lines, but has none.")
    return targets


def finish_pronouncer(run_folder: Path, folder: Path, targets: Sample) -> None:
    """Add the records of the run, and the scores on words with their right phones."""
    _copy(run_folder, folder, *_RECORDS)
    rows = [
        "\t".join([word, target, *([language] if language else [])]) + "\n"
        for (word, language), found in targets.items()
        for target in found
    ]
    (folder / SAMPLE).write_text("".join(rows), encoding="utf-8")
    texts = pronounce_sample(folder, list(targets))
    right = list(targets.values())
    scores = {
        "lines": len(texts),
        "word_error_rate": round(word_error_rate(texts, right), 5),
        "token_error_rate": round(token_error_rate(texts, right), 5),
    }
    _write_json(folder / SCORES, scores)
    print(json.dumps(scores))


def pronounce_sample(folder: Path, words: Sequence[tuple[str, str]]) -> list[str]:
    """Pronounce words of languages as people do: by the engine, which rounds to int8 too."""
    found: dict[tuple[str, str], str] = {}
    for language in dict.fromkeys(language for _, language in words):
        own = [word for word, x in words if x == language]
        pronouncer = Pronouncer(
            folder, language=language or None, threshold=0, device="cpu", num_beams=NUM_BEAMS
        )
        texts = [best.text for best, *_ in pronouncer.pronounce(own)]
        found |= {(word, language): text for word, text in zip(own, texts, strict=True)}
    return [found[key] for key in words]


# ------------------------------------------------------------------ translators


def finish_translator(args: argparse.Namespace, folder: Path, texts: Texts) -> None:
    """Add the records of the run, the scores of these weights, the sample and the card."""
    _copy(args.run, folder, *(name for name in _RECORDS if name != "README.md"))
    if texts.license is not None:
        (folder / "LICENSE").write_bytes(texts.license)
    _write_generation(folder, texts.train)
    translator = Translator(folder)
    found = translate(translator, texts.test)
    _write_json(folder / "test.json", record(texts.test, *found, num_resamples=1000))
    sample, outputs = texts.test[: args.lines], found[0][: args.lines]
    rows = "".join(f"{pair.source}\t{pair.target}\n" for pair in sample)
    (folder / SAMPLE).write_text(rows, encoding="utf-8")
    scores = {
        name: round(value, 5) if isinstance(value, float) else value
        for name, value in record(sample, outputs, 0).items()
        if name.split("_")[0] in ("bleu", "chrf")
    }
    scores = {"lines": len(sample), "num_beams": NUM_BEAMS, **scores}
    _write_json(folder / SCORES, scores)
    _write_json(folder / "run.json", public_run(args))
    errors = _errors_of(texts.test, found[0])
    if args.write_errors is not None:
        lines = [_ERRORS_HEAD, *("\t".join(("", *row)) for row in errors)]
        args.write_errors.write_text("\n".join(lines) + "\n", encoding="utf-8")
    sections = [("These weights", _weights_text(args, folder, scores))]
    if texts.others:
        sections.append(("Out of its domain", others_text(translator, texts.others)))
    if texts.errors:
        if [row[1:] for row in texts.errors] != [list(row) for row in errors]:
            raise ValueError(
                f"`--errors` must have the first {len(errors)} errors of these weights, but has "
                "others: `--write_errors` writes them."
            )
        shutil.copyfile(args.errors, folder / ERRORS)
        sections.append(("Errors", errors_text(texts.errors)))
    shown = [(x.source, y) for x, y in zip(texts.test, found[0][:_NUM_SHOWN], strict=False)]
    card = model_card(
        folder, title=args.title, about=texts.about or None, samples=shown, sections=sections
    )
    loads = "from_pretrained(name, trust_remote_code=True)"
    card = card.replace(loads, loads[:-1] + ', dtype="float32")', 1)
    (folder / "README.md").write_text(card, encoding="utf-8")
    print(json.dumps(scores))


def translate(translator: Translator, pairs: Sequence[TextPair]) -> tuple[list[str], int]:
    """Translate the sources of pairs; the texts, and how many reached the limit of length."""
    results = translator.translate([pair.source for pair in pairs], num_beams=NUM_BEAMS)
    texts = [one_line(best.text) for best, *_ in results]
    return texts, sum(best.is_cut for best, *_ in results)


def record(
    pairs: Sequence[TextPair], texts: Sequence[str], num_cut: int, *, num_resamples: int = 0
) -> dict[str, Any]:
    """Score translations as the test set of a run is scored, for test.json."""
    right = [pair.target for pair in pairs]
    names = [metric.name for metric in VALIDATED]
    asked = [name for name in names if name in METRICS]  # the rest is always there
    scores = score_translations(texts, right, metrics=asked)
    found: dict[str, Any] = {"sentences": len(texts), "num_beams": NUM_BEAMS}
    found["cut_translations"] = num_cut
    for name in names:
        value: Score | float = getattr(scores, name)
        if isinstance(value, Score):
            found[name], found[f"{name}_signature"] = value.score, value.signature
        else:
            found[name] = value
    signed = [metric.name for metric in VALIDATED if metric.scorer is not None]
    if num_resamples:
        drawn = score_translations(texts, right, metrics=signed, num_resamples=num_resamples)
        for name in signed:
            score = getattr(drawn, name)
            found[f"{name}_confidence"] = {**asdict(score.confidence), "signature": score.signature}
    return found


def public_run(args: argparse.Namespace) -> dict[str, Any]:
    """Return the run's record for other people's eyes, with what the card needs beside it."""
    written = read_json(args.run / "run.json")
    # Our presets keep their place in the repository, so that the command can be typed.
    command = re.sub(r"\S*/(scripts/configs/\S+\.yaml)", r"\1", str(written.get("command", "")))
    found: dict[str, Any] = without_folders({**written, "command": command})
    given = {name: getattr(args, name) for name in ("data_name", "data_license", "model_license")}
    options = {name: value for name, value in given.items() if value is not None}
    options["output_dir"] = f"models/{args.name}"
    found["options"] = {**found.get("options", {}), **options}
    return found


def _write_generation(folder: Path, train: Sequence[str]) -> None:
    """Say in the generation config how long sources of the training data are."""
    if train:
        path = folder / "generation_config.json"
        longest = usual_length(map(len, train))
        _write_json(path, {**read_json(path), "usual_source_chars": longest})


def _weights_text(args: argparse.Namespace, folder: Path, scores: dict[str, Any]) -> str:
    size = (folder / "model.safetensors").stat().st_size / 1e6
    text = (
        f"The weights here are the run's best ones in {args.weights}, {size:.1f} MB, and the "
        f"results above are theirs. `{SAMPLE}` has the first {scores['lines']} sentences of the "
        f"test set; on them these weights score BLEU {scores['bleu']:.2f} and chrF "
        f"{scores['chrf']:.2f} (`{SCORES}`), which a test of the repository computes again."
    )
    before = args.run / "test.json"
    if before.is_file():
        run_scores = read_json(before)
        text += (
            " Before rounding, in float32, the whole test set scored BLEU "
            f"{run_scores['bleu']:.2f} and chrF {run_scores['chrf']:.2f}."
        )
    return text


def others_text(translator: Translator, others: dict[str, list[TextPair]]) -> str:
    """Score other test sets, and write a table of them."""
    rows, signatures = [], {}
    for name, pairs in others.items():
        found = record(pairs, *translate(translator, pairs))
        rows.append(f"| {name} | {len(pairs):,} | {found['bleu']:.2f} | {found['chrf']:.2f} |")
        signatures = {metric: found[f"{metric}_signature"] for metric in ("bleu", "chrf")}
    head = ["| test set | sentences | BLEU | chrF |", "|---|---|---|---|"]
    signed = f"Beam {NUM_BEAMS}; BLEU `{signatures['bleu']}`, chrF `{signatures['chrf']}`."
    return "\n".join([_OUT_OF_DOMAIN, "", *head, *rows, "", signed])


# ------------------------------------------------------------------ errors, looked at one by one


def _errors_of(pairs: Sequence[TextPair], texts: Sequence[str]) -> list[tuple[str, str, str]]:
    """List the first translations that differ from their reference."""
    found = (
        (pair.source, pair.target, text)
        for pair, text in zip(pairs, texts, strict=True)
        if text != pair.target
    )
    # A tab would be a column of the list.
    rows = [tuple(cell.replace("\t", " ") for cell in row) for row in found]
    return [(a, b, c) for a, b, c in rows[:_NUM_ERRORS]]


def _read_errors(path: Path) -> list[list[str]]:
    with typed(path="--errors"):
        head, *lines = read_lines(path) or [""]
    if head != _ERRORS_HEAD:
        raise ValueError(f"the first line of '{path}' must be {_ERRORS_HEAD!r}, but is {head!r}.")
    rows = [line.split("\t") for line in lines]
    for number, row in enumerate(rows, 2):
        if len(row) != 4 or not row[0].strip():
            raise ValueError(
                f"line {number} of '{path}' must have four columns, a kind of error in the first, "
                f"but is {lines[number - 2]!r}."
            )
    return rows


def errors_text(rows: Sequence[Sequence[str]]) -> str:
    """Write a table of the kinds of errors and their numbers, with an example of each."""
    counts = Counter(row[0].strip() for row in rows)
    first = {row[0].strip(): row for row in reversed(rows)}
    table = ["| kind | number | the first | translation |", "|---|---|---|---|"]
    for kind, number in counts.most_common():
        cells = (kind, str(number), first[kind][1], first[kind][3])
        table.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    told = (
        f"The first {len(rows)} translations of the test set that differ from their reference, "
        f"looked at one by one (`{ERRORS}`):"
    )
    return "\n".join([told, "", *table])


def _read_pairs(sources: Path, targets: Path) -> list[TextPair]:
    pairs = read_parallel(sources, targets)
    if not pairs:
        raise ValueError(f"'{sources}' must have lines, but has none.")
    for number, pair in enumerate(pairs, 1):
        if "\t" in pair.source + pair.target:
            raise ValueError(f"line {number} of '{sources}' and its translation must have no tab.")
    return pairs


if __name__ == "__main__":
    sys.exit(main())
