"""Model cards say what a run measured, and nothing else."""

import importlib.resources
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
from hub_fixtures import CLIENT_WARNING, REPO, save_model
from hub_stand_in import HubStandIn
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from hf_qrnn import QRNNConfig, QRNNForCausalLM, QRNNForSequenceClassification
from hf_qrnn.cli.main import main
from hf_qrnn.data.reading import TextPair
from hf_qrnn.hub.client import HubError
from hf_qrnn.metrics.table import Metric
from hf_qrnn.model import modeling_qrnn
from hf_qrnn.training import cards
from hf_qrnn.training.card_words import CardWords
from hf_qrnn.training.cards import TEMPLATE, describe_data, model_card
from hf_qrnn.training.options import PublishOptions, parse_options
from hf_qrnn.training.publish import check_publishing, draw_attention, publish_run, write_card
from hf_qrnn.translation.translator import load_translator

ROOT = Path(__file__).parents[2]
COMMAND = (
    "/srv/ann/scripts/train_translation.py --train_source /srv/ann/train.de --data_name 'Some data'"
)
RUN = {
    "command": COMMAND,
    "options": {
        "source_lang": None,
        "target_lang": None,
        "train_source": "/srv/ann/train.de.xz",
        "train_target": "/srv/ann/train.en.xz",
        "seed": 3,
        "num_beams": 5,
        "output_dir": "run",
        "tokenizer": "char",
        "data_name": "Some data",
        "data_license": "CC BY 2.0, attribution: somebody",
        "model_license": "cc-by-4.0",
        "card_title": "A small model",
    },
    "data": {"train": 29000, "valid": 1014, "test": 1000, "filter": "29000 of 29001 pairs kept",
             "mean_source_chars": 70.64, "mean_target_chars": 61.1, "distinct_chars": 100},
    "parameters": 5415486,
    "date": "2026-11-23",
    "versions": {"hf_qrnn": "0.1.0", "torch": "2.13.0"},
    "hardware": {"device": "cpu", "machine": "x86_64", "cpu_capability": "AVX2", "threads": 1},
}  # fmt: skip
TEST = {
    "sentences": 1000, "num_beams": 5, "bleu": 31.25, "bleu_signature": "nrefs:1|tok:13a",
    "bleu_confidence": {"mean": 31.2, "margin": 1.125},
    "chrf": 55.5, "chrf_signature": "nrefs:1|nc:6", "exact_match": 1.0,
}  # fmt: skip
RECORDS = [
    {"kind": "train", "step": 1, "loss": 2.0, "chars_per_second": 900.0, "seconds": 1.0},
    {"kind": "train", "step": 2, "loss": 2.0, "chars_per_second": 1100.0, "seconds": 2.0},
    {"kind": "valid", "step": 1200, "seconds": 600.0, "loss": 0.5, "bleu": 20.0, "chrf": 40.0},
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder, as the training script leaves it."""
    folder = tmp_path / "run"
    save_model(folder)
    (folder / "run.json").write_text(json.dumps(RUN))
    (folder / "test.json").write_text(json.dumps(TEST))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in RECORDS))
    (folder / "learning_curve.png").write_bytes(b"\x89PNG")
    return folder


def no_placeholder_survives(text: str) -> bool:
    return re.search(r"\{\{|\}\}|\{%|%\}|TODO|\bNone\b(?! \|)|\[more information", text) is None


def test_card_holds_every_number_with_its_origin(run: Path) -> None:
    text = model_card(run, about="About it.", samples=[("Ein Hund.", "A dog.")])
    for part in (
        "# A small model",
        "translates from de to en, characters in and characters out",
        "About it.",
        "| 1,000 sentences | BLEU | 31.25 +- 1.12 | 5 |",
        "| 1,000 sentences | chrF | 55.50 | 5 |",
        "- BLEU `nrefs:1|tok:13a`",
        "- chrF `nrefs:1|nc:6`",
        "- 1.0 % of the translations equal their reference",
        "| parameters | 5,415,486 |",
        "| `hidden_size` | 8 |",
        "Trained on Some data.",
        "| train | 29,000 |",
        "70.6 characters on the source's side and 61.1 on the target's",
        "Filter: 29000 of 29001 pairs kept.",
        "- seed 3, 2026-11-23",
        "- cpu (x86_64, AVX2), 1 thread(s)",
        "- 1,200 updates in 600 seconds of training",
        "- 1,000 source and target characters per second",
        "| 1,200 | 10 | 0.500 | 20.0 | 40.0 |",
        "](learning_curve.png)",
        "- Ein Hund.\n  - A dog.",
        "- data (Some data): CC BY 2.0, attribution: somebody",
        "- weights: cc-by-4.0",
        "python scripts/train_translation.py --train_source train.de --data_name 'Some data'",
        "hf_qrnn 0.1.0, torch 2.13.0",
        "@inproceedings{bradbury2017quasi",
    ):
        assert part in text
    assert "/srv" not in text
    assert "attention.png" not in text
    assert no_placeholder_survives(text)


def test_model_index_is_valid_and_has_the_signatures(run: Path) -> None:
    data = ModelCard(model_card(run)).data
    assert (data.pipeline_tag, data.language, data.license) == (
        "translation", ["de", "en"], "cc-by-4.0",
    )  # fmt: skip
    assert data.metrics == ["bleu", "chrf"]
    # What the Hub's own reader makes of the text.
    again = ModelCard(model_card(run)).data.to_dict()
    name, results = model_index_to_eval_results(again["model-index"])
    assert name == "A small model"
    for result, metric in zip(results, ("bleu", "chrf"), strict=True):
        assert (result.metric_type, result.metric_value) == (metric, TEST[metric])
        assert result.metric_args["signature"] == TEST[f"{metric}_signature"]
        assert (result.dataset_type, result.dataset_split) == ("some-data", "test")


def test_card_of_symbols_and_tags_says_how_to_use_them(run: Path) -> None:
    options = {**RUN["options"], "language_tag": "lang", "target_tokens": "blank"}  # type: ignore[dict-item]
    options |= {"source_lang": "word", "target_lang": "phones"}
    data = {**RUN["data"], "languages": {"eng": 12000, "fre": 17000}}  # type: ignore[dict-item]
    data |= {"source_tokens": "char", "target_tokens": "blank"}
    (run / "run.json").write_text(json.dumps({**RUN, "options": options, "data": data}))
    text = model_card(run)
    for part in (
        "that translates, characters in and symbols between blanks out, made with",
        'inputs = tokenizer(["<eng>The dog sleeps."], return_tensors="pt")',
        "pairs of each: `<eng>` 12,000, `<fre>` 17,000.",
    ):
        assert part in text
    assert no_placeholder_survives(text)
    found = ModelCard(text).data
    assert found.language == ["eng", "fre"]
    assert "character-level" not in found.tags


def test_card_tells_the_metric_that_chose_the_model(run: Path) -> None:
    rates = {"char_error_rate": 0.01236, "token_error_rate": 0.0321, "word_error_rate": 0.25}
    (run / "run.json").write_text(json.dumps({**RUN, "metric": "char_error_rate"}))
    (run / "test.json").write_text(json.dumps({**TEST, **rates}))
    (run / "metrics.jsonl").write_text("".join(
        json.dumps({**record, **changes}) + "\n"
        for record, changes in zip(
            RECORDS[2:] * 2, ({"char_error_rate": 0.5}, {"bleu": None, "step": 2400}), strict=True
        )
    ))  # fmt: skip
    text = model_card(run)
    for part in (
        "- the best model of the run by char error rate in validation",
        "- edits for every 100 characters of the references (CER): 1.24",
        "- edits for every 100 tokens between blanks (TokER): 3.21",
        "- 25.00 % of the lines are wrong (WER, where a line is a word)",
        "| update | minutes | nats per target token | BLEU | chrF | CER % |\n|---|---|",
        "| 1,200 | 10 | 0.500 | 20.0 | 40.0 | 50.0 |",
        "| 2,400 | 10 | 0.500 |  | 40.0 |  |",
    ):
        assert part in text
    _, results = model_index_to_eval_results(ModelCard(text).data.to_dict()["model-index"])
    found = {result.metric_type: result.metric_value for result in results}
    assert found == {"bleu": 31.25, "chrf": 55.5, "cer": 0.0124}


def test_card_of_a_bare_model_says_what_is_not_known(tmp_path: Path) -> None:
    save_model(tmp_path / "bare")
    text = model_card(tmp_path / "bare")
    assert "No test set was scored" in text
    assert "not stated by whoever trained the model" in text
    for absent in ("## Training", "## Reproduce", "## Data", "model-index", ".png"):
        assert absent not in text
    assert no_placeholder_survives(text)
    with pytest.raises(FileNotFoundError, match=r"`folder` must hold config\.json"):
        model_card(tmp_path)


@pytest.mark.parametrize(
    ("kind", "pipeline"),
    [
        (QRNNForCausalLM, "text-generation"),
        (QRNNForSequenceClassification, "text-classification"),
    ],
)
def test_usage_of_other_heads_runs(
    kind: type, pipeline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "head"
    tokens = save_model(folder).config.vocab_size
    kind(
        QRNNConfig(vocab_size=tokens, embedding_size=6, hidden_size=8, encoder_layers=1,
                   decoder_layers=1)
    ).save_pretrained(folder)  # fmt: skip
    text = model_card(folder)
    assert ModelCard(text).data.pipeline_tag == pipeline
    assert "translates" not in text
    monkeypatch.chdir(tmp_path)
    exec(usage(text), {})


def usage(text: str) -> str:
    """The block of Python in a card."""
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    return code


def test_usage_block_runs(run: Path) -> None:
    draw_attention(load_translator(str(run), device="cpu"), "abc def", run)
    write_card(run)
    text = (run / "README.md").read_text(encoding="utf-8")
    assert (run / "attention.png").read_bytes().startswith(b"\x89PNG")
    assert "](attention.png)" in text
    assert 'name = "run"' in text
    assert "Der Hund schl\u00e4ft." in text
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", usage(text)],
        capture_output=True, text=True, cwd=run.parent, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("['")


def test_a_tasks_own_words_are_those_of_its_run(run: Path) -> None:
    words = CardWords(
        does="reverses words", usage="print({'a': 1}, '{sentence}')", rows="words",
        loss="nats per letter", speed="letters", validations="Some words.", limits=["It is slow."],
    )  # fmt: skip
    card = {**asdict(words), "of a later release": 1}
    (run / "run.json").write_text(json.dumps({**RUN, "card": card}))
    text = model_card(run)
    for part in (
        "that reverses words, made with",
        "print({'a': 1}, 'Der Hund schl\u00e4ft.')\n```",
        "| split | words |",
        "| update | minutes | nats per letter | BLEU | chrF |",
        "- 1,000 letters per second",
        "- It is slow.\n",
        "AutoModelForSeq2SeqLM",
    ):
        assert part in text
    assert "translates" not in text
    (run / "run.json").write_text(json.dumps({**RUN, "card": {"does": 1}}))
    with pytest.raises(ValueError, match=r"`run\.json` must have a text as 'does'"):
        model_card(run)


@pytest.mark.parametrize("head", modeling_qrnn.HEADS, ids=lambda head: head.__name__)
def test_a_task_that_only_says_what_it_does_has_the_program_of_its_head(
    head: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    tokens = save_model(folder).config.vocab_size
    sizes = {"embedding_size": 6, "hidden_size": 8, "encoder_layers": 1, "decoder_layers": 1}
    ids = {"pad_token_id": 0, "decoder_start_token_id": 3}
    head(QRNNConfig(vocab_size=tokens, **sizes, **ids)).save_pretrained(folder)
    (folder / "run.json").write_text(
        json.dumps({**RUN, "card": asdict(CardWords(does="reverses"))})
    )
    text = model_card(folder)
    assert "that reverses, made with" in text
    monkeypatch.chdir(tmp_path)
    exec(usage(text), {})


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("vowels.py --epochs 2", "python vowels.py --epochs 2"),
        ("/srv/ann/vowels.py", "python vowels.py"),
        ("'/srv/my work/vowels.py' --data '/srv/ann/a b'", "python vowels.py --data 'a b'"),
        ("'my vowels.py' --epochs 2", "python 'my vowels.py' --epochs 2"),
        ("scripts/train_classifier.py -a", "python scripts/train_classifier.py -a"),
        ("/srv/ann/scripts/train_classifier.py", "python scripts/train_classifier.py"),
        ("train_language_model.py", "python scripts/train_language_model.py"),
    ],
)
def test_reproduce_names_the_script_where_it_is(run: Path, command: str, shown: str) -> None:
    (run / "run.json").write_text(json.dumps({**RUN, "command": command}))
    assert f"\n```\n{shown}\n```\n" in model_card(run)


def test_our_scripts_are_those_that_are_there() -> None:
    assert {path.name for path in (ROOT / "scripts").glob("train_*.py")} == set(cards.OUR_SCRIPTS)


@pytest.mark.parametrize(
    ("given", "shown"),
    [(None, "[6, 2, 2]"), (3, "3"), ([5, 4, 3], "[5, 4, 3]")],
)
def test_card_writes_default_filters_out(run: Path, given: object, shown: str) -> None:
    config = json.loads((run / "config.json").read_text())
    changed = {**config, "encoder_layers": 3, "encoder_kernel_sizes": given}
    (run / "config.json").write_text(json.dumps(changed))
    text = model_card(run)
    assert f"| `encoder_kernel_sizes` | {shown} |" in text
    assert "| `decoder_kernel_sizes` | [2, 2] |" in text


def test_a_rate_without_a_sentence_is_in_the_table_of_results(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rate(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        raise AssertionError("a card only shows")

    metric = Metric("same_length", "length", scale=100.0, of="all", hub_name="x", rate=rate)
    monkeypatch.setattr(cards, "RECORDED", (*cards.RECORDED, metric))
    (run / "test.json").write_text(json.dumps({**TEST, "same_length": 0.25}))
    text = model_card(run)
    assert "| 1,000 sentences | length | 25.00 % | 5 |" in text
    assert not re.search(r"^- *$", text, flags=re.MULTILINE)
    assert ModelCard(text).data.metrics == ["bleu", "chrf", "x"]


def test_template_is_one_and_ships_with_the_package() -> None:
    installed = importlib.resources.files("hf_qrnn.training") / TEMPLATE.name
    assert (ROOT / "model_cards/TEMPLATE.md").read_text() == installed.read_text()
    assert (ROOT / "model_cards/TEMPLATE.md").resolve() == TEMPLATE.resolve()
    packaged = (ROOT / "pyproject.toml").read_text()
    assert '"training/*.md"' in packaged


def test_cards_in_the_repository_are_valid() -> None:
    paths = list(ROOT.glob("model_cards/*/README.md"))
    assert paths
    for path in paths:
        card = ModelCard.load(path)
        assert card.data.pipeline_tag in ("translation", "text-generation", "text-classification")
        assert no_placeholder_survives(card.text.split("## Options")[0])


def test_describe_data_counts_characters() -> None:
    train = [TextPair("abc", "a"), TextPair("d", "\u00fcd")]
    found = describe_data(train, train[:1], [])
    assert found == {
        "train": 2, "valid": 1, "test": 0, "mean_source_chars": 2.0, "mean_target_chars": 1.5,
        "distinct_chars": 5,
    }  # fmt: skip


# ------------------------------------------------------------------ at the end of a run


@pytest.mark.filterwarnings(CLIENT_WARNING)
def test_finished_run_is_pushed(run: Path, hub: HubStandIn) -> None:
    options = PublishOptions(push_to_hub=True, hub_model_id=REPO, hub_private=True, hub_tag="v1")
    check_publishing(options)
    assert hub.repos[REPO].private
    pushed = publish_run(run, options)
    assert pushed is not None
    assert hub.repos[REPO].tags == {"v1": pushed.commit}
    files = hub.files(REPO)
    assert {"README.md", "run.json", "test.json"} < set(files)
    assert f'name = "{REPO}"' in files["README.md"].decode()
    assert b"/srv" not in b"".join(files.values())


@pytest.mark.filterwarnings(CLIENT_WARNING)
def test_a_tag_that_is_taken_is_told_before_training(run: Path, hub: HubStandIn) -> None:
    """It was told after training and after the push, as `--tag`."""
    options = PublishOptions(push_to_hub=True, hub_model_id=REPO, hub_tag="v1")
    check_publishing(options)
    publish_run(run, options)
    head = hub.repos[REPO].branches["main"]
    with pytest.raises(ValueError, match=r"`hub_tag` must be new, but 'v1' names the commit"):
        check_publishing(options)
    check_publishing(options, is_resumed=True)  # which may find all pushed already
    other = PublishOptions(push_to_hub=True, hub_model_id=REPO, hub_revision="v1")
    with pytest.raises(ValueError, match=r"`hub_revision` must be a branch, but 'v1' is a tag"):
        check_publishing(other)
    private = PublishOptions(push_to_hub=True, hub_model_id=REPO, hub_private=True)
    with pytest.raises(ValueError, match=r"`hub_private` must be left out for .* public already"):
        check_publishing(private)
    assert hub.repos[REPO].branches == {"main": head}
    (run / "test.json").unlink()  # another content than the tag's
    with pytest.raises(HubError, match=r"`hub_tag` must be new, but 'v1' names the commit"):
        publish_run(run, options)


def test_the_text_about_data_is_that_of_the_options(run: Path, tmp_path: Path) -> None:
    """A file that run.json names is not opened: it may be of another machine, or anything."""
    (tmp_path / "about.md").write_text("What the options say.\n", encoding="utf-8")
    (tmp_path / "other.md").write_text("What run.json says.\n", encoding="utf-8")
    options = {**RUN["options"], "card_about": str(tmp_path / "other.md")}
    (run / "run.json").write_text(json.dumps({**RUN, "options": options}))
    publish_run(run, PublishOptions(card_about=str(tmp_path / "about.md")))
    card = (run / "README.md").read_text(encoding="utf-8")
    assert "What the options say." in card
    assert "What run.json says." not in card + model_card(run)


def test_run_without_push_only_writes(run: Path) -> None:
    check_publishing(PublishOptions())
    assert publish_run(run, PublishOptions()) is None
    assert (run / "README.md").is_file()


@pytest.mark.filterwarnings(CLIENT_WARNING)
def test_push_writes_a_missing_card(run: Path, hub: HubStandIn) -> None:
    assert main(["push", str(run), REPO]) == 0
    assert "# A small model" in hub.files(REPO)["README.md"].decode()
    assert not (run / "README.md").exists()


def test_publish_options_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`hub_model_id` must be given with `push_to_hub`"):
        parse_options([PublishOptions], ["--push_to_hub"])
    with pytest.raises(FileNotFoundError, match="`card_about` must be an existing file"):
        parse_options([PublishOptions], ["--card_about", str(tmp_path / "none")])
