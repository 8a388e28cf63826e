"""The registered task "qrnn-translation", and the pipelines of transformers that know our heads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from hf_qrnn import (
    QRNNConfig,
    QRNNForCausalLM,
    QRNNForConditionalGeneration,
    QRNNForSequenceClassification,
    QRNNTranslationPipeline,
)
from hf_qrnn.data.tokenization import train_character_tokenizer

TEXTS = ["abc def", "k", "ab  cd efghijk", "hg"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved translation model with its tokenizer."""
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    tokenizer = train_character_tokenizer(["abcdefgh ijk"])
    config = QRNNConfig(
        vocab_size=len(tokenizer), embedding_size=6, hidden_size=8, encoder_layers=2,
        decoder_layers=2, initializer_range=1.0,
    )  # fmt: skip
    model = QRNNForConditionalGeneration(config)
    model.generation_config.max_length = 12
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def translate(folder: Path) -> QRNNTranslationPipeline:
    made = pipeline("qrnn-translation", model=str(folder))
    assert isinstance(made, QRNNTranslationPipeline)
    return made


def by_hand(translate: QRNNTranslationPipeline, text: str, **options: object) -> list[str]:
    inputs = translate.tokenizer(text, return_tensors="pt")
    sequences = translate.model.generate(**inputs, **options)
    return translate.tokenizer.batch_decode(sequences, skip_special_tokens=True)


def test_task_is_registered_once() -> None:
    assert "qrnn-translation" in PIPELINE_REGISTRY.get_supported_tasks()
    _, found, _ = PIPELINE_REGISTRY.check_task("qrnn-translation")
    assert found["impl"] is QRNNTranslationPipeline
    assert found["pt"] == (AutoModelForSeq2SeqLM,)


def test_one_text_gives_a_list_of_one(translate: QRNNTranslationPipeline) -> None:
    (expected,) = by_hand(translate, TEXTS[0])
    assert expected.strip()
    assert translate(TEXTS[0]) == [{"translation_text": expected}]


@pytest.mark.parametrize("batch_size", [None, 1, 3])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_list_gives_a_list_whatever_the_batches(
    translate: QRNNTranslationPipeline, batch_size: int | None, num_beams: int
) -> None:
    expected = [by_hand(translate, text, num_beams=num_beams)[0] for text in TEXTS]
    assert len(set(expected)) > 1
    got = translate(TEXTS, batch_size=batch_size, num_beams=num_beams)
    assert got == [{"translation_text": text} for text in expected]


def test_several_sequences_a_text(translate: QRNNTranslationPipeline) -> None:
    options = {"num_beams": 3, "num_return_sequences": 2, "return_dict_in_generate": True}
    plain = {"num_beams": 3, "num_return_sequences": 2}
    expected = [
        [{"translation_text": found} for found in by_hand(translate, text, **plain)]
        for text in TEXTS
    ]
    assert translate(TEXTS, batch_size=2, **options) == expected
    assert translate(TEXTS[0], **options) == expected[0]


def test_options_of_construction_are_defaults_of_every_call(folder: Path) -> None:
    short = pipeline("qrnn-translation", model=str(folder), max_new_tokens=3, num_beams=2)
    (text,) = short(TEXTS[:1])
    assert text["translation_text"] == by_hand(short, TEXTS[0], max_new_tokens=3, num_beams=2)[0]
    longer = short(TEXTS[:1], max_new_tokens=6)[0]["translation_text"]
    assert longer == by_hand(short, TEXTS[0], max_new_tokens=6, num_beams=2)[0]
    assert longer != text["translation_text"]


def test_blank_texts_stay_blank_and_in_place(translate: QRNNTranslationPipeline) -> None:
    got = translate(["", TEXTS[0], " \n"], batch_size=3)
    assert [bool(item["translation_text"]) for item in got] == [False, True, False]
    assert translate("") == [{"translation_text": ""}]
    assert translate([]) == []


def test_a_generator_of_texts(translate: QRNNTranslationPipeline) -> None:
    got = [
        item[0]["translation_text"] for item in translate((text for text in TEXTS), batch_size=2)
    ]
    assert got == [by_hand(translate, text)[0] for text in TEXTS]


def test_what_is_not_a_text_is_refused(translate: QRNNTranslationPipeline) -> None:
    with pytest.raises(TypeError, match=r"A text must be a string, but is a int\."):
        translate([3])


def test_language_model_and_classifier_are_known_to_their_pipelines(
    folder: Path, transformers_log: pytest.LogCaptureFixture
) -> None:
    tokenizer = train_character_tokenizer(["abcdefgh ijk"])
    config = QRNNConfig(vocab_size=len(tokenizer), embedding_size=6, hidden_size=8)
    write = pipeline("text-generation", model=QRNNForCausalLM(config), tokenizer=tokenizer)
    tokenizer.padding_side = "left"
    # A prompt of our tokenizers ends with </s>, as every text does: none of it here.
    (result,) = write("abc", max_new_tokens=4, add_special_tokens=False, return_full_text=True)
    assert result["generated_text"].startswith("abc")
    judge = pipeline(
        "text-classification", model=QRNNForSequenceClassification(config), tokenizer=tokenizer
    )
    assert judge("abc")[0]["label"] in {"LABEL_0", "LABEL_1"}
    assert "is not supported" not in transformers_log.text


REMOTE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_qrnn":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
from transformers import pipeline, utils
utils.logging.disable_progress_bar()
translate = pipeline("qrnn-translation", model=sys.argv[1], trust_remote_code=True)
print([item["translation_text"] for item in translate(sys.argv[2:], num_beams=2)])
"""


def test_saved_pipeline_runs_where_the_package_is_not_installed(
    translate: QRNNTranslationPipeline, tmp_path: Path
) -> None:
    translate.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved/pipeline_qrnn.py").is_file()
    result = subprocess.run(
        [sys.executable, "-c", REMOTE, str(tmp_path / "saved"), *TEXTS],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "cache")},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    expected = [by_hand(translate, text, num_beams=2)[0] for text in TEXTS]
    assert result.stdout.splitlines()[-1] == str(expected)
