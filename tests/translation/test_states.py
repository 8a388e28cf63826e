"""The states of a classifier over a text."""

from pathlib import Path

import pytest
import torch

from hf_qrnn import QRNNConfig, QRNNForCausalLM, QRNNForSequenceClassification
from hf_qrnn.data.words import train_prose_tokenizer
from hf_qrnn.translation.states import classifier_states, load_classifier

TEXT = "a b ! a c"


def save(folder: Path, **changes: object) -> None:
    tokenizer = train_prose_tokenizer(["a b ! a"])
    sizes = {
        "embedding_size": 5,
        "hidden_size": 6,
        "encoder_layers": 2,
        "is_encoder_decoder": False,
    }
    labels = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    config = QRNNConfig(
        vocab_size=len(tokenizer), encoder_kernel_sizes=[2, 1], **sizes | labels | changes
    )
    QRNNForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("pooling", ["f", "fo"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_states_are_those_of_the_equations(
    tmp_path: Path, pooling: str, bidirectional: bool, reverse: bool
) -> None:
    torch.manual_seed(1)
    save(
        tmp_path, pooling=pooling, encoder_bidirectional=bidirectional, reverse_source=reverse,
        dense_connections=True,
    )  # fmt: skip
    model, tokenizer = load_classifier(str(tmp_path))
    found = classifier_states(model, tokenizer, TEXT)
    assert found.tokens == ["a", "b", "!", "a", "<unk>", "</s>"]
    inputs = tokenizer([TEXT], return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
        expected = []
        for index, layer in enumerate(model.model.encoder.layers[-1].directions):
            # k = 1: the gates of a step are a product of its own input.
            gates = layer.convolution(output.hidden_states[-2][0])  # (S, G*H)
            z, f = gates.chunk(len(pooling) + 1, dim=-1)[:2]
            z, f = z.tanh(), f.sigmoid()
            c, states = torch.zeros(z.shape[1]), {}
            steps = range(len(z)) if (index == 1) == reverse else reversed(range(len(z)))
            for t in steps:
                c = f[t] * c + (1 - f[t]) * z[t]
                states[t] = c
            expected.append(torch.stack([states[t] for t in range(len(z))]))
    torch.testing.assert_close(found.states, torch.cat(expected, dim=-1))
    shares = output.logits[0].softmax(-1)
    assert found.label == ["bad", "good"][int(shares.argmax())]
    assert found.probability == pytest.approx(float(shares.max()))
    assert not any(layer._forward_hooks for layer in model.modules())


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    save(tmp_path / "classifier")
    model, tokenizer = load_classifier(str(tmp_path / "classifier"))
    with pytest.raises(ValueError, match=r"`text` must have text, but is ' '\."):
        classifier_states(model, tokenizer, " ")
    with pytest.raises(ValueError, match="`name_or_path` must be a folder with a saved QRNN class"):
        load_classifier(str(tmp_path / "none"))
    QRNNForCausalLM(model.config).save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    with pytest.raises(ValueError, match=r"QRNN classifier .* lacks 'classifier.bias'\."):
        load_classifier(str(tmp_path / "lm"))
