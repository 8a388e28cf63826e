"""Damaged files of a folder: one sentence with the file's name, and no traceback."""

import json
import shutil
from pathlib import Path

import pytest
from hub_fixtures import CLIENT_WARNING, REPO, save_run
from hub_stand_in import HubStandIn

from hf_qrnn.cli.main import main
from hf_qrnn.data.json_files import read_json, read_json_lines
from hf_qrnn.training.cards import model_card
from hf_qrnn.training.run_files import read_records, read_run

pytestmark = pytest.mark.filterwarnings(CLIENT_WARNING)

HARDWARE = {"device": "cpu", "machine": "x", "cpu_capability": "AVX2", "threads": 1}
RUN = {"command": "t.py", "date": "2026-01-01", "options": {"seed": 1}, "hardware": HARDWARE}
CUT, BYTES, ARRAY = b'{"a": ', b'{"a": "\xff"}', b"[1]"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    save_run(folder)
    (folder / "run.json").write_text(json.dumps(RUN))
    (folder / "README.md").unlink()
    return folder


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "run"))


@pytest.mark.parametrize(
    "name",
    [
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
        "special_tokens_map.json", "added_tokens.json", "run.json", "test.json",
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "content", [b"", CUT, BYTES, ARRAY, b"null", b"[" * 100_000, b'{"a": "\\ud800"}']
)
def test_damaged_json_is_one_sentence(
    name: str, content: bytes, run: Path, hub: HubStandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / name).write_bytes(content)
    assert main(["push", str(run), REPO]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: `{name}` must be ")
    assert hub.log == []


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "metrics.jsonl",
            b'{"kind": "train", "step": 1}\n{"ki',
            "a JSON object a line, but line 2",
        ),
        ("metrics.jsonl", b'{"step": 1}\n', "a text as 'kind', .* but in record 1 it is missing"),
        ("metrics.jsonl", b'{"kind": "train"}\n', "a whole number as 'step'"),
        ("metrics.jsonl", b'{"kind": "valid", "step": 1}\n', "a number as 'seconds'"),
        ("metrics.jsonl", b'{"kind": "train", "step": 1, "seconds": "x"}', "a number as 'seconds'"),
        ("run.json", b'{"options": {"seed": 1}}', "a text as 'command'"),
        ("run.json", json.dumps({**RUN, "hardware": {}}).encode(), "a text as 'device'"),
        ("run.json", json.dumps({**RUN, "options": {}}).encode(), "a whole number as 'seed'"),
        ("run.json", json.dumps({**RUN, "data": {"train": "x"}}).encode(), "number as 'train'"),
        ("run.json", json.dumps({**RUN, "metric": 3}).encode(), "a text as 'metric'"),
        ("run.json", json.dumps({**RUN, "base": "x"}).encode(), "an object as 'base'"),
        ("run.json", json.dumps({**RUN, "base": {}}).encode(), "a text as 'init_from'"),
        (
            "run.json",
            json.dumps({**RUN, "base": {"init_from": "x", "is_on_hub": 1}}).encode(),
            "true or false as 'is_on_hub', .* but it is 1",
        ),
        (
            "metrics.jsonl",
            b'{"kind": "valid", "step": 1, "seconds": 1, "loss": 1, "char_error_rate": "x"}\n',
            "a number as 'char_error_rate', .* but in record 1 it is 'x'",
        ),
        ("test.json", b'{"token_error_rate": "x"}', "a number as 'token_error_rate'"),
        ("test.json", b'{"exact_match": 1.0}', "a whole number as 'sentences', .* missing"),
        ("test.json", b'{"bleu": "high"}', "a number as 'bleu', .* but it is 'high'"),
        ("test.json", b'{"chrf": 1.0}', "a text as 'chrf_signature', .* but it is missing"),
        ("README.md", b"\xff\xfe", "UTF-8"),
        ("README.md", b"---\na: [\n---\n", "front matter, but it is damaged"),
        ("modeling_qrnn.py", b"", "must define QRNNForCausalLM"),
        ("modeling_qrnn.py", b"class (", "must be Python"),
        ("layers_qrnn.py", b"\xff\xfe", "UTF-8"),
        ("model.safetensors", b"", "must be whole, but is damaged"),
        ("model.safetensors", b"\x08\0\0\0\0\0\0\0{}      x", "must be whole, but is damaged"),
        ("tokenizer_config.json", b"{}", "must name a padding token"),
    ],
)
def test_foreign_content_is_one_sentence(
    name: str,
    content: bytes,
    sentence: str,
    run: Path,
    hub: HubStandIn,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (run / name).write_bytes(content)
    assert main(["push", str(run), REPO]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: `{name}` must ")
    with pytest.raises(ValueError, match=sentence):
        raise ValueError(error)
    assert hub.log == []


def test_weights_of_another_model_are_one_sentence(
    run: Path, hub: HubStandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((run / "config.json").read_text())
    for change, sentence in (
        ({"hidden_size": 10}, "error: `MODEL` must load, but: "),
        ({"encoder_layers": 3}, "error: `MODEL` must hold all its weights, but lacks 2, "),
        ({"decoder_start_token_id": None}, "error: `decoder_start_token_id` must be given"),
    ):
        (run / "config.json").write_text(json.dumps(config | change))
        assert main(["push", str(run), REPO]) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith(sentence)
    assert hub.log == []


def test_a_card_is_not_made_of_damaged_files(run: Path) -> None:
    (run / "metrics.jsonl").write_bytes(CUT)
    with pytest.raises(ValueError, match=r"`metrics\.jsonl` must hold a JSON object a line"):
        model_card(run)


def test_whole_files_are_read_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n\n')
    assert read_run(tmp_path) == read_json(tmp_path / "run.json") == RUN
    expected = [{"kind": "train", "step": 1}]
    assert read_records(tmp_path) == read_json_lines(tmp_path / "metrics.jsonl") == expected
    assert read_run(tmp_path / "none") == {}
