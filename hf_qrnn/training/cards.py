"""Model cards from a run's own files: config.json, run.json, metrics.jsonl, test.json, pictures.

`card_template.md` is the one template (model_cards/TEMPLATE.md leads to it). A card says what the
files say; what they do not say is left out, and never made up.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from statistics import median
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, StrictUndefined

from hf_qrnn.data.json_files import read_json
from hf_qrnn.data.reading import TextPair
from hf_qrnn.hub.push import command_without_folders, without_folders
from hf_qrnn.metrics.table import BY_NAME, RECORDED
from hf_qrnn.model.configuration_qrnn import QRNNConfig
from hf_qrnn.model.modeling_qrnn import HEADS, QRNNModel

from .card_words import WORDS, CardWords, usage_of
from .options import MODEL_FLAGS
from .run_files import read_records, read_run, read_test

TEMPLATE = Path(__file__).with_name("card_template.md")

OUR_SCRIPTS = ("train_classifier.py", "train_language_model.py", "train_translation.py")
"""The programs in `scripts/` that train; any other is a user's."""

_NOT_STATED = "not stated"
_ARCHITECTURE = [name for name in MODEL_FLAGS if name != "embedding_dropout"]
_SENTENCES = {"de": "Der Hund schl\u00e4ft.", "fr": "Le chien dort.", "en": "The dog sleeps."}
_USAGE = """\
from transformers import {auto}, AutoTokenizer

name = "{name}"
model = {auto}.from_pretrained(name, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
"""


def model_card(
    folder: Path,
    *,
    title: str | None = None,
    about: str | None = None,
    samples: Sequence[tuple[str, str]] = (),
    sections: Sequence[tuple[str, str]] = (),
) -> str:
    """Make the card of the model in `folder`, in Markdown with the Hub's front matter.

    Args:
        folder: Holds config.json; run.json, metrics.jsonl, test.json, learning_curve.png and
            attention.png or states.png are used where they are.
        title: Heading; None is the run's `card_title`, else the folder's name.
        about: What a reader must know to judge the numbers. No file that the folder names is
            opened for it.
        samples: Sources and the model's translations, shown as they are.
        sections: Headings and texts, to stand below the results.

    Raises:
        FileNotFoundError: If there is no config.json.
        ValueError: If the folder's files do not make a valid card.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"`folder` must hold config.json, but {str(folder / 'config.json')!r} is missing."
        )
    config = read_json(folder / "config.json")
    run, test, records = read_run(folder), read_test(folder), read_records(folder)
    options: dict[str, Any] = without_folders(run.get("options", {}))
    auto, pipeline = _head(config)
    words = _words(run, pipeline)
    title = title or options.get("card_title") or f"QRNN {folder.resolve().name}"
    content = {
        "card_data": _card_data(pipeline, title, run, test, words).to_yaml(),
        "title": title,
        "words": words,
        "summary": _summary(words, run),
        "about": about,
        "usage": _usage(auto, usage_of(words, pipeline), folder, run),
        "results": _results(test, words),
        "sections": [*sections, *_written(folder)],
        "model": _model(config, run),
        "data": _data(run, options, words),
        "training": _training(run, records, words),
        "curve": _curve(records, words, has_picture=(folder / "learning_curve.png").is_file()),
        "attention": (folder / "attention.png").is_file(),
        "states": (folder / "states.png").is_file(),
        "samples": "\n".join(f"- {source}\n  - {target}" for source, target in samples),
        "licences": _licences(options),
        "reproduce": _command(run),
        "versions": _versions(run),
        "options": json.dumps(options, indent=1, ensure_ascii=False),
    }
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True, autoescape=False
    )
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(content)
    ModelCard(text)  # raises ValueError for front matter that the Hub refuses
    return text


def _written(folder: Path) -> list[tuple[str, str]]:
    """Make the section of what a language model wrote at the end of its run."""
    path = folder / "samples.txt"
    if not path.is_file():
        return []
    text = "\n".join(f"    {line}".rstrip() for line in path.read_text("utf-8").splitlines())
    return [
        ("What it writes", f"Not chosen, and drawn in one go from the end of a line:\n\n{text}")
    ]


def _head(config: dict[str, Any]) -> tuple[str, str]:
    """Name the Auto class and the pipeline of the model that a config is of."""
    name = (config.get("architectures") or [""])[0]
    head = next((head for head in HEADS if head.__name__ == name), QRNNModel)
    return head.registration.auto_class, head.registration.pipeline_tag


def _words(run: dict[str, Any], pipeline: str) -> CardWords:
    """Take the words that the run kept, or those of its head."""
    written = run.get("card")
    if written is None:
        return WORDS.get(pipeline, CardWords())
    names = {known.name for known in fields(CardWords)}  # a later release may have more
    return CardWords(**{name: value for name, value in written.items() if name in names})


def _filled(text: str, **values: object) -> str:
    """Put values in place of their names in braces; other braces are text."""
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", str(value))
    return text


def _tags(run: dict[str, Any]) -> dict[str, int]:
    """Give the languages that the model has tags for, with their numbers of training pairs."""
    found: dict[str, int] = run.get("data", {}).get("languages") or {}
    return found


def _units(run: dict[str, Any]) -> tuple[str, str]:
    """Say what a token is, of the source and of the target."""
    data, tokenizer = run.get("data") or {}, run.get("options", {}).get("tokenizer") or "char"
    if "source_tokens" in data and "target_tokens" in data:
        names = {"char": "characters", "blank": "symbols between blanks"}
        source, target = (data[f"{side}_tokens"] for side in ("source", "target"))
        return names.get(source, "tokens"), names.get(target, "tokens")
    unit = {"char": "characters", "byte": "bytes"}.get(tokenizer, "tokens")
    return unit, unit


def example_sentence(folder: Path) -> str:
    """Return a sentence in the source language of the run in `folder`, English if unknown."""
    languages = _languages(read_run(folder).get("options", {}))
    return _SENTENCES.get("en" if languages is None else languages[0], _SENTENCES["en"])


def describe_data(
    train: Sequence[TextPair], valid: Sequence[TextPair], test: Sequence[TextPair]
) -> dict[str, Any]:
    """Numbers of pairs, and the mean lengths and distinct characters of the training pairs."""
    characters = {character for pair in train for character in pair.source + pair.target}
    return {
        "train": len(train),
        "valid": len(valid),
        "test": len(test),
        "mean_source_chars": sum(len(pair.source) for pair in train) / max(1, len(train)),
        "mean_target_chars": sum(len(pair.target) for pair in train) / max(1, len(train)),
        "distinct_chars": len(characters),
    }


def _languages(options: dict[str, Any]) -> tuple[str, str] | None:
    """Source and target language where the run named them, or its files end in them."""
    if options.get("language_tag"):
        return None  # the names are of columns, whatever the language
    if options.get("source_lang") and options.get("target_lang"):
        return options["source_lang"], options["target_lang"]
    pattern = r".*\.(?!gz|xz)([a-z]{2,3})(?:\.gz|\.xz)?"
    found = [
        re.fullmatch(pattern, options.get(f"train_{side}") or "") for side in ("source", "target")
    ]
    if found[0] is None or found[1] is None:
        return None
    return found[0][1], found[1][1]


def _data_name(options: dict[str, Any]) -> str:
    named = options.get("data_name") or options.get("dataset_name")
    files = options.get("train_source") or options.get("train_file")
    return str(named or (f"the files of {files}" if files else "unnamed data"))


def _card_data(
    pipeline: str, title: str, run: dict[str, Any], test: dict[str, Any], words: CardWords
) -> ModelCardData:
    options = without_folders(run.get("options", {}))
    languages, results = _languages(options), []
    name = options.get("data_name") or options.get("dataset_name") or title
    for metric in RECORDED:
        # Those of the table of results, and the one that the run was about.
        is_told = not metric.on_card or metric.name == run.get("metric")
        if test.get(metric.name) is None or not is_told:
            continue
        arguments = {"num_beams": test["num_beams"]} if metric.needs_translations else {}
        if metric.scorer is not None:
            arguments["signature"] = test[f"{metric.name}_signature"]
        results.append(
            EvalResult(
                task_type=pipeline,
                task_name=pipeline.capitalize(),
                dataset_type=options.get("dataset_name") or _slug(name),
                dataset_name=f"{name} ({test[words.counted]} test {words.counted})",
                dataset_split="test",
                metric_type=metric.hub_name,
                metric_name=metric.label,
                metric_value=round(test[metric.name], 2 if metric.scale == 1 else 4),
                metric_args=arguments or None,
            )
        )
    levels = {"characters": ["character-level"], "bytes": ["byte-level"]}
    unit, target_unit = _units(run)
    level = levels.get(unit, []) if unit == target_unit else []
    tags = list(_tags(run)) or None
    dataset = str(options.get("dataset_name") or "")
    is_hub_dataset = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", dataset) is not None
    base = run.get("base")
    base_model = base["init_from"].partition("@")[0] if base and base["is_on_hub"] else None
    return ModelCardData(
        base_model=base_model,
        language=list(languages) if languages is not None else tags,
        license=options.get("model_license") or "apache-2.0",
        library_name="transformers",
        pipeline_tag=pipeline,
        tags=["qrnn", *level, "custom_code", "hf_qrnn"],
        datasets=[dataset] if is_hub_dataset else None,
        metrics=[result.metric_type for result in results] or None,
        model_name=title if results else None,
        eval_results=results or None,
    )


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "data"


def _summary(words: CardWords, run: dict[str, Any]) -> str:
    languages = _languages(run.get("options", {}))
    unit, target_unit = _units(run)
    pair = "" if languages is None else f" from {languages[0]} to {languages[1]}"
    does = _filled(words.does, pair=pair, unit=unit, target_unit=target_unit)
    paper = "[arXiv 1611.01576](https://arxiv.org/abs/1611.01576)"
    return f"A quasi-recurrent neural network ({paper}) that {does}, made with `hf_qrnn`."


def _usage(auto: str, program: str, folder: Path, run: dict[str, Any]) -> str:
    options: dict[str, Any] = without_folders(run.get("options", {}))
    tag = next((f"<{language}>" for language in _tags(run)), "")
    return _filled(
        _USAGE + program,
        auto=auto,
        name=options.get("hub_model_id") or options.get("output_dir") or folder.resolve().name,
        sentence=tag + example_sentence(folder),
        num_beams=options.get("num_beams") or 4,
    )


def _results(test: dict[str, Any], words: CardWords) -> str:
    rows, notes = [], []
    beams = "num_beams" in test
    for metric in RECORDED:
        score = test.get(metric.name)
        if score is None:
            continue
        if metric.on_card:
            notes.append(f"- {metric.on_card.format(metric.scale * score)}")
            continue
        confidence = test.get(f"{metric.name}_confidence") or {}
        interval = _interval(confidence, metric.scale)
        if "method" in confidence:
            notes.append(
                f"- in brackets: {100 * confidence['level']:.0f} % interval by "
                f"{confidence['method']} over the {words.counted}"
            )
        unit = " %" if metric.of else ""
        rows.append(
            f"| {test[words.counted]:,} {words.counted} | {metric.label} "
            f"| {metric.scale * score:.2f}{unit}{interval} |"
            + (f" {test['num_beams']} |" if beams else "")
        )
        if metric.scorer is not None:
            notes.append(f"- {metric.label} `{test[f'{metric.name}_signature']}`")
    if not rows:
        return ""
    head = "| test set | metric | score |" + (" beams |" if beams else "")
    line = "|---|---|---|" + ("---|" if beams else "")
    if any(name.endswith("_confidence") and "margin" in (test[name] or {}) for name in test):
        notes.append("- +- is half of the 95 % interval by bootstrap over the sentences")
    table = "\n".join([head, line, *rows])
    return "\n\n".join(part for part in (table, "\n".join(notes), words.results) if part)


def _interval(confidence: dict[str, Any], scale: float) -> str:
    """Write a confidence interval, half of its width or both its ends."""
    if "margin" in confidence:
        return f" +- {confidence['margin']:.2f}"
    if "low" in confidence:
        return f" ({scale * confidence['low']:.2f} to {scale * confidence['high']:.2f})"
    return ""


def _model(config: dict[str, Any], run: dict[str, Any]) -> str:
    rows = [("class", (config.get("architectures") or ["QRNNModel"])[0])]
    if "parameters" in run:
        rows.append(("parameters", f"{run['parameters']:,}"))
    given = run.get("options", {})
    read = [name for name in _ARCHITECTURE if name in given] or _ARCHITECTURE
    shown = {**config, **_kernel_sizes(config)}
    rows += [(f"`{key}`", str(shown[key])) for key in ("vocab_size", *read) if key in shown]
    return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)


def _kernel_sizes(config: dict[str, Any]) -> dict[str, list[int]]:
    """Write the filter widths out that a config leaves to their defaults."""
    found = {}
    for part in ("encoder", "decoder"):
        name, layers = f"{part}_kernel_sizes", config.get(f"{part}_layers")
        if config.get(name, 0) is None and isinstance(layers, int):
            same = QRNNConfig(encoder_layers=layers, decoder_layers=layers)
            found[name] = same.kernel_sizes(part)
    return found


def _data(run: dict[str, Any], options: dict[str, Any], words: CardWords) -> str:
    data = run.get("data") or {}
    if not data:
        return ""
    lines = [f"Trained on {_data_name(options)}.", "", f"| split | {words.rows} |", "|---|---|"]
    lines += [
        f"| {split} | {data[split]:,} |" for split in ("train", "valid", "test") if data.get(split)
    ]
    facts = []
    if options.get("streaming"):
        facts.append("The training pairs were streamed: what is said of them is of the first ones.")
    if "mean_source_chars" in data:
        facts.append(
            f"A training pair has {data['mean_source_chars']:.1f} characters on the source's side "
            f"and {data['mean_target_chars']:.1f} on the target's, the mean of all; "
            f"{data['distinct_chars']:,} characters are distinct."
        )
    if data.get("distilled_lines"):
        facts.append(
            f"Of the training pairs {data['distilled_lines']:,} are not data but what other models "
            f"wrote, translations of {data['distilled_sources']:,} sources; an epoch has one of "
            "each source, drawn by their probabilities."
        )
    vectors = data.get("word_vectors")
    if vectors:
        facts.append(
            f"The embedding began with those of `{vectors['file']}` for {vectors['found']:,} of "
            f"{vectors['vocabulary']:,} tokens, {100 * vectors['share_of_tokens']:.1f} % of the "
            "training texts; all others were drawn."
        )
    if _tags(run):
        counted = ", ".join(f"`<{name}>` {count:,}" for name, count in _tags(run).items())
        facts.append(
            f"A source begins with the tag of its language; {words.rows} of each: {counted}."
        )
    if data.get("filter"):
        facts.append(f"Filter: {data['filter']}.")
    return "\n".join([*lines, *([""] if facts else []), *facts])


def _training(run: dict[str, Any], records: Sequence[dict[str, Any]], words: CardWords) -> str:
    if not run:
        return ""
    hardware, options = run["hardware"], run["options"]
    machine = f"{hardware['device']} ({hardware['machine']}, {hardware['cpu_capability']})"
    lines = [f"- seed {options['seed']}, {run['date']}", f"- {machine}"]
    lines[-1] += f", {hardware['threads']} thread(s)"
    base = run.get("base")
    if base is not None:
        lines.append(f"- began with the weights of `{without_folders(base['init_from'])}`")
        if base["new_characters"]:
            lines[-1] += f", whose vocabulary got {base['new_characters']} new characters"
    if hardware.get("processes"):
        lines.append(f"- {hardware['processes']}")
    if records:
        seconds = max(record.get("seconds", 0.0) for record in records)
        lines.append(f"- {records[-1]['step']:,} updates in {seconds:,.0f} seconds of training")
    if run.get("metric"):
        lines.append(f"- the best model of the run by {_label(run['metric'])} in validation")
    rates = [record["chars_per_second"] for record in records if "chars_per_second" in record]
    if rates:
        lines.append(f"- {median(rates):,.0f} {words.speed} per second, the median")
    return "\n".join(lines)


def _curve(records: Sequence[dict[str, Any]], words: CardWords, *, has_picture: bool) -> str:
    lines = [record for record in records if record["kind"] == "valid"]
    if not lines:
        return ""
    shown = [metric for metric in RECORDED if any(metric.name in record for record in lines)]
    rows = []
    for record in lines:
        start = [f"{record['step']:,}", f"{record['seconds'] / 60:.0f}", f"{record['loss']:.3f}"]
        scores = [(metric, record.get(metric.name)) for metric in shown]
        cells = ["" if x is None else f"{metric.scale * x:.1f}" for metric, x in scores]
        rows.append(f"| {' | '.join([*start, *cells])} |")
    names = [metric.label + (" %" if metric.of else "") for metric in shown]
    head = ["update", "minutes", words.loss, *names]
    table = [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *rows]
    picture = "![Loss and validation scores over the updates](learning_curve.png)\n\n"
    text = words.validations + "\n\n"
    return "## Learning curve\n\n" + (picture if has_picture else "") + text + "\n".join(table)


def _label(name: str) -> str:
    metric = BY_NAME.get(name)
    return name.replace("_", " ") if metric is None or metric.rate is not None else metric.label


def _licences(options: dict[str, Any]) -> str:
    data = options.get("data_license") or (
        f"{_NOT_STATED} by whoever trained the model; find out before you share it"
    )
    return (
        f"- data ({_data_name(options)}): {data}\n"
        f"- weights: {options.get('model_license') or 'apache-2.0'}\n"
        "- code: Apache 2.0"
    )


def _command(run: dict[str, Any]) -> str:
    if not run:
        return ""
    # The first word, which shlex quotes where a folder's name has a blank.
    found = re.match(r"'[^']*'|\S*", str(run["command"]))
    assert found is not None, "it may be empty, and is found even then"
    script, arguments = Path(found[0].strip("'")), found.string[found.end() :]
    # Folders say nothing to another reader, but that of our own scripts.
    name = f"scripts/{script.name}" if script.name in OUR_SCRIPTS else script.name
    arguments = command_without_folders(arguments)
    return f"python {shlex.quote(name)} {arguments}".rstrip()


def _versions(run: dict[str, Any]) -> str:
    found = run.get("versions") or {}
    return ", ".join(f"{name} {version}" for name, version in found.items())
