"""Fixtures of the tests that talk to the stand-in for the Hub."""

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hub_stand_in import WRITE_TOKEN, Fault, HubStandIn
from huggingface_hub import constants
from huggingface_hub.utils import close_session
from transformers.utils import hub as transformers_hub

import hf_qrnn
from hf_qrnn import QRNNConfig, QRNNForConditionalGeneration
from hf_qrnn.data.tokenization import train_character_tokenizer

REPO = "someone/qrnn-de-en"
# huggingface_hub hands files to its HTTP library in a way that this calls outdated.
CLIENT_WARNING = "ignore:Use 'content=<...>' to upload:DeprecationWarning"
CARD = """\
---
language: de
license: apache-2.0
---

# A model

```python
name = "runs/mine"
```
"""


DOCS = Path(__file__).parents[2] / "docs/hub.md"
_ROW = re.compile(r"^\| `(\w+)(?: (\d+))?` (once|twice|always) \| `([^`]+)` \| (.+) \|$", re.M)


@dataclass(frozen=True)
class Row:
    """A row of the tables of faults in docs/hub.md; no error where the result is right."""

    kind: str
    status: int
    often: str
    request: str
    error: str | None

    def fault(self) -> Fault:
        times = {"once": 1, "twice": 2, "always": 999}[self.often]
        retry_after = 7 if self.status == 429 else None
        return Fault(self.kind, self.request, times, self.status, retry_after)

    def __str__(self) -> str:
        return f"{self.kind} {self.status or ''} {self.often} {self.request}"


def fault_rows(command: str, *, fails: bool) -> list[Row]:
    """Read the rows of one command that end right, or those that end in an error."""
    section = DOCS.read_text(encoding="utf-8").split(f"### {command}\n")[1].split("\n#")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    rows = []
    for kind, status, often, request, outcome in _ROW.findall(section):
        error = re.fullmatch("error: `(.+)`", outcome)
        assert error is not None or outcome == "right", outcome
        error_text = None if error is None else error[1]
        rows.append(Row(kind, int(status or 0), often, request, error_text))
    assert len(rows) == len(lines) > 10, "a row that is no fault"
    return [row for row in rows if (row.error is not None) is fails]


def travellers() -> set[str]:
    """Find the modules that the heads need by following their imports."""
    package, needed, seen = Path(hf_qrnn.__file__).parent / "model", {"modeling_qrnn"}, set[str]()
    while needed - seen:
        name = min(needed - seen)
        seen.add(name)
        tree = ast.parse((package / f"{name}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
                needed.add(node.module)
    return {f"{name}.py" for name in seen}


def save_model(folder: Path, *, seed: int = 0) -> QRNNForConditionalGeneration:
    """Save a tiny translation model with its tokenizer."""
    tokenizer = train_character_tokenizer(["abcdefgh ijklm\u00fcn.opq"])
    torch.manual_seed(seed)
    config = QRNNConfig(
        vocab_size=len(tokenizer), embedding_size=6, hidden_size=8, encoder_layers=2,
        decoder_layers=2, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id, decoder_start_token_id=tokenizer.bos_token_id,
    )  # fmt: skip
    model = QRNNForConditionalGeneration(config).eval()
    model.generation_config.max_length = 16
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def save_run(folder: Path) -> None:
    """Make the folder of a run: the model, its record, and much that must not be pushed."""
    save_model(folder)
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    command = "/home/ann/scripts/train_translation.py --train_source /home/ann/data/train.de"
    record = {"command": command, "options": {"train_source": "/home/ann/data/train.de"}}
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "loss": 2.0}\n')
    (folder / "learning_curve.png").write_bytes(b"\x89PNG picture")
    (folder / "test.hypotheses.txt").write_text("somebody's text\n")
    (folder / "optimizer.pt").write_bytes(b"moments")
    (folder / "train.de").write_text("somebody's text\n")
    for name in ("checkpoints/step_10", ".saving", "data"):
        (folder / name).mkdir(parents=True)
        (folder / name / "optimizer.safetensors").write_bytes(b"moments")
        (folder / name / "model.safetensors").write_bytes(b"older weights")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record the pauses that are asked for, and make none of them."""
    made: list[float] = []
    monkeypatch.setattr("time.sleep", made.append)
    return made


def _forget_connections() -> None:
    """Make both libraries forget the address and the connections of an earlier stand-in."""
    close_session()
    if hasattr(transformers_hub, "_hf_api"):  # not in all versions
        transformers_hub._hf_api = None


@pytest.fixture
def hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, waits: list[float]
) -> Iterator[HubStandIn]:
    """Start a stand-in that this process and those it starts take for the Hub."""
    with HubStandIn() as stand_in:
        template = stand_in.url + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in (
            ("ENDPOINT", stand_in.url),
            ("HUGGINGFACE_CO_URL_TEMPLATE", template),
            ("HF_HUB_OFFLINE", False),
            ("HF_HUB_DISABLE_XET", True),
            ("HF_HUB_CACHE", str(tmp_path / "cache" / "hub")),
        ):
            monkeypatch.setattr(constants, name, value)
        for name, value in (
            ("HF_ENDPOINT", stand_in.url),
            ("HF_HUB_OFFLINE", "0"),
            ("HF_HUB_DISABLE_XET", "1"),
            ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
            ("HF_HOME", str(tmp_path / "cache")),
            ("HF_TOKEN", WRITE_TOKEN),
        ):
            monkeypatch.setenv(name, value)
        _forget_connections()
        yield stand_in
        _forget_connections()
        assert stand_in.mistakes == []
