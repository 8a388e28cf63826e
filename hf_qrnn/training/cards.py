"""Model cards of training runs, from what a run wrote: run.json, metrics.jsonl and test.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData


def translation_card(
    folder: Path, *, title: str, about: str, samples: Sequence[tuple[str, str]]
) -> str:
    """The card of a translation run, in Markdown with the Hub's front matter.

    Args:
        folder: The run's folder, as `scripts/train_translation.py` leaves it with test data.
        title: Heading of the card.
        about: What the data are and what a reader must know to judge the numbers.
        samples: Sources and the model's translations, shown as they are.

    Raises:
        FileNotFoundError: If the run wrote no test scores.
    """
    run, test = (_read_json(folder / name) for name in ("run.json", "test.json"))
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").split("\n")
    records = [json.loads(line) for line in lines if line]
    options = run["options"]
    card = ModelCardData(
        language=[options["source_lang"] or "de", options["target_lang"] or "en"],
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="translation",
        tags=["qrnn", "character-level", "custom_code", "hf_qrnn"],
    )
    sections = [
        f"---\n{card.to_yaml()}\n---\n\n# {title}\n\n{about}\n",
        _results(test, run),
        _curve(records),
        "## Samples\n\nNot chosen: the first ten sentences that were written for this card.\n",
        "\n".join(f"- {source}\n  - {target}" for source, target in samples) + "\n",
        "## Options\n",
        "```json\n" + json.dumps(_without_folders(options), indent=1) + "\n```\n",
    ]
    return "\n".join(sections)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"`folder` must hold {path.name}, but {str(path)!r} is missing.")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _results(test: dict[str, Any], run: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    hardware = run["hardware"]
    return f"""## Results

| test set | BLEU | chrF | beams |
|---|---|---|---|
| {test["sentences"]} sentences | {test["bleu"]:.2f} | {test["chrf"]:.2f} | {test["num_beams"]} |

- BLEU signature `{test["bleu_signature"]}`
- chrF signature `{test["chrf_signature"]}`
- one run, seed {run["options"]["seed"]}, {run["date"]}; {run["parameters"]:,} parameters;
  {run["data"]["train"]:,} training pairs
- {hardware["device"]} ({hardware["machine"]}, {hardware["cpu_capability"]}), \
{hardware["threads"]} thread(s); {versions}
- `{" ".join(_file_name(word) for word in run["command"].split())}`
"""


def _file_name(text: str) -> str:
    """The name alone: the folders of one machine say nothing to another's reader."""
    return text.rsplit("/", 1)[-1] if text.startswith("/") else text


def _without_folders(options: dict[str, Any]) -> dict[str, Any]:
    return {k: _file_name(v) if isinstance(v, str) else v for k, v in options.items()}


def _curve(records: Sequence[dict[str, Any]]) -> str:
    rows = [
        f"| {record['step']:,} | {record['seconds'] / 60:.0f} | {record['loss']:.3f} "
        f"| {record['bleu']:.1f} | {record['chrf']:.1f} |"
        for record in records
        if record["kind"] == "valid" and record.get("bleu") is not None
    ]
    head = "| update | minutes | nats per character | BLEU | chrF |\n|---|---|---|---|---|\n"
    text = "Greedy search on the first validation sentences; minutes of training alone.\n\n"
    return "## Learning curve\n\n" + text + head + "\n".join(rows) + "\n"
