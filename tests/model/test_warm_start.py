"""A language model's checkpoint as the beginning of a classifier and of a decoder."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM

from hf_qrnn import (
    QRNNConfig,
    QRNNForCausalLM,
    QRNNForConditionalGeneration,
    QRNNForSequenceClassification,
)
from hf_qrnn.model.warm_start import classifier_from_language_model

VARIANTS = {
    "plain": {},
    "wide": {"decoder_kernel_sizes": [3, 1], "pooling": "ifo", "dense_connections": True},
    "modern": {"residual": True, "rms_norm": True, "feed_forward_size": 12, "embedding_size": 8},
    "tied": {"tie_word_embeddings": True},
}


def language_model(folder: Path, **changes: object) -> QRNNForCausalLM:
    sizes = {"vocab_size": 13, "embedding_size": 6, "hidden_size": 8, "decoder_layers": 2}
    model = QRNNForCausalLM(QRNNConfig(**(sizes | changes))).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_classifier_begins_with_the_states_of_the_language_model(
    changes: dict[str, object], tmp_path: Path
) -> None:
    model = language_model(tmp_path, **changes)
    classifier = classifier_from_language_model(tmp_path, num_labels=3, dropout=0.1)
    assert (classifier.config.num_labels, classifier.config.dropout) == (3, 0.1)
    ids = torch.randint(4, 13, (2, 7))
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    expected = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    got = classifier.eval()(ids, attention_mask=mask, output_hidden_states=True)
    for mine, theirs in zip(got.hidden_states, expected, strict=True):
        torch.testing.assert_close(mine, theirs)
    last = torch.stack([expected[-1][0, 6], expected[-1][1, 3]])
    torch.testing.assert_close(got.logits, classifier.classifier(last))


def test_classifier_says_what_is_new(
    tmp_path: Path, transformers_log: pytest.LogCaptureFixture
) -> None:
    language_model(tmp_path)
    classifier_from_language_model(tmp_path)
    (record,) = transformers_log.records
    assert record.getMessage() == (
        "Newly initialised, to be trained: classifier.weight, classifier.bias."
    )


def test_classifier_keeps_the_precision_of_the_language_model(tmp_path: Path) -> None:
    language_model(tmp_path).to(torch.bfloat16).save_pretrained(tmp_path)
    classifier = classifier_from_language_model(tmp_path)
    assert {p.dtype for p in classifier.parameters()} == {torch.bfloat16}


def test_layers_are_those_of_the_language_model(tmp_path: Path) -> None:
    language_model(tmp_path)
    with pytest.raises(ValueError, match=r"must leave the layers as they are, but are {'enc"):
        classifier_from_language_model(tmp_path, encoder_layers=3, encoder_kernel_sizes=2)


def test_classifier_saved_again_is_a_classifier(tmp_path: Path) -> None:
    language_model(tmp_path / "lm", decoder_kernel_sizes=3)
    classifier = classifier_from_language_model(tmp_path / "lm")
    classifier.save_pretrained(tmp_path / "again")
    again = type(classifier).from_pretrained(tmp_path / "again")
    assert again.config.encoder_kernel_sizes == [3, 3]
    state = classifier.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())


@pytest.mark.parametrize("kind", [QRNNForConditionalGeneration, QRNNForSequenceClassification])
def test_only_a_whole_language_model_is_taken(kind: type, tmp_path: Path) -> None:
    kind(QRNNConfig(vocab_size=13, hidden_size=8)).save_pretrained(tmp_path)
    if kind is QRNNForConditionalGeneration:  # it has all that a language model has
        assert classifier_from_language_model(tmp_path).config.encoder_causal
        return
    with pytest.raises(ValueError, match=r"must be a checkpoint of QRNNForCausalLM, but is '"):
        classifier_from_language_model(tmp_path)


def test_decoder_begins_with_the_weights_of_the_language_model(
    tmp_path: Path, transformers_log: pytest.LogCaptureFixture
) -> None:
    language_model(tmp_path)
    model, info = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
    saved, loaded = load_file(tmp_path / "model.safetensors"), model.state_dict()
    assert "model.decoder.layers.1.layer.convolution.weight" in saved
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in saved.items())
    # What a language model does not have: the encoder, V of Eq. 7, the attention of Eq. 8.
    missing = set(info["missing_keys"])
    assert missing == set(loaded) - set(saved)
    assert all(
        ".encoder." in name or ".encoding." in name or "attention" in name for name in missing
    )
    assert "MISSING" in transformers_log.text
