"""Optimisers and schedules: SGD and L2 as in the paper, a loss of summed steps, decay by epochs."""

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from small_models import small

from hf_qrnn import QRNNForCausalLM
from hf_qrnn.training.loop import LoopOptions, Trainer
from hf_qrnn.training.optimizers import learning_rate_factor, make_optimizer
from hf_qrnn.training.text_stream import RowBatches

ROWS, STEPS = 3, 5


def language_model() -> QRNNForCausalLM:
    torch.manual_seed(0)
    return QRNNForCausalLM(small(is_encoder_decoder=False)).double()


def updated(updates: int = 1, **options: Any) -> list[torch.Tensor]:
    """Make updates on rows of a text, and return the weights."""
    model = language_model()
    tokens = torch.randint(4, 20, (1 + 12 * ROWS,), generator=torch.Generator().manual_seed(1))
    rows = RowBatches(tokens, num_rows=ROWS, length=STEPS)
    given = {"max_steps": updates, "schedule": "constant", "optimizer": "sgd", "max_grad_norm": 0}
    trainer = Trainer(
        model, rows, rows, LoopOptions(**{**given, **options}), Accelerator(cpu=True),
        chars_per_token=(0.0, 1.0), log=lambda record: None, save_best=lambda: None,
        validate=lambda step: (0.0, {}),
        forward=lambda model, batch, smoothing: model(
            input_ids=batch.inputs["input_ids"], shift_labels=batch.inputs["labels"],
            num_items_in_batch=1,
        ),
    )  # fmt: skip
    trainer.train()
    return [p.detach().clone() for p in model.parameters()]


def test_loss_of_rows_is_summed_over_the_steps() -> None:
    # Of batches of 5, 5 and 2 steps: the last one's sum is smaller, its mean is not.
    for updates, factor in ((1, STEPS), (2, STEPS)):
        rows = updated(updates, loss_mean="rows", learning_rate=0.01)
        tokens = updated(updates, loss_mean="tokens", learning_rate=0.01 * factor)
        for one, other in zip(rows, tokens, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)
    rows = updated(3, loss_mean="rows", learning_rate=0.01)
    tokens = updated(3, loss_mean="tokens", learning_rate=0.05)
    differences = [float((a - b).abs().max()) for a, b in zip(rows, tokens, strict=True)]
    assert max(differences) > 1e-4


def test_norm_belongs_to_the_loss_of_rows() -> None:
    # As in the paper: a norm of 10 is one of the sum. Clipped, both go equally far.
    clipped = updated(loss_mean="rows", max_grad_norm=1e-3, learning_rate=1.0)
    start = [p.detach() for p in language_model().parameters()]
    moved = sum(float((a - b).square().sum()) for a, b in zip(clipped, start, strict=True)) ** 0.5
    assert moved == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("decayed", ["matrices", "all"])
def test_sgd_has_l2_and_no_momentum(decayed: str) -> None:
    rate, l2 = 0.1, 0.3
    plain = updated(learning_rate=rate)
    found = updated(learning_rate=rate, weight_decay=l2, decayed_weights=decayed)
    start = dict(language_model().named_parameters())
    for (name, before), one, other in zip(start.items(), plain, found, strict=True):
        decays = decayed == "all" or (before.dim() > 1 and "shared" not in name)
        expected = one - rate * l2 * before.detach() * decays
        torch.testing.assert_close(other, expected, rtol=1e-9, atol=1e-12)
    optimizer = make_optimizer(language_model(), LoopOptions(optimizer="sgd"))
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.defaults["momentum"] == 0


def test_rmsprop_divides_by_the_root_of_the_mean_square() -> None:
    rate, alpha, epsilon = 0.1, 0.9, 1e-3
    options = {"optimizer": "rmsprop", "adam_beta2": alpha, "adam_epsilon": epsilon}
    found = updated(learning_rate=rate, **options)
    start = [p.detach() for p in language_model().parameters()]
    plain = updated(learning_rate=1.0)
    for before, after, one in zip(start, found, plain, strict=True):
        grad = before - one
        step = rate * grad / ((1 - alpha) ** 0.5 * grad.abs() + epsilon)
        torch.testing.assert_close(after, before - step, rtol=1e-5, atol=1e-8)


def test_rate_falls_by_a_factor_an_epoch() -> None:
    options = LoopOptions(schedule="epochs", constant_epochs=6, epoch_factor=0.95)
    factors = [learning_rate_factor(options, 99, 0.5, epoch) for epoch in range(9)]
    assert factors == pytest.approx([1.0] * 6 + [0.95, 0.95**2, 0.95**3])
    warm = LoopOptions(schedule="epochs", constant_epochs=0, epoch_factor=0.5, warmup_steps=4)
    assert learning_rate_factor(warm, 0, 0.0, 1) == pytest.approx(0.25 * 0.25)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"optimizer": "lbfgs"}, "`optimizer` must be one of adamw, adam, rmsprop, sgd"),
        ({"schedule": "steps"}, "`schedule` must be one of cosine, linear, constant, epochs"),
        ({"decayed_weights": "none"}, "`decayed_weights` must be one of matrices, all"),
        ({"loss_mean": "steps"}, "`loss_mean` must be one of tokens, rows"),
        ({"epoch_factor": -1}, "`epoch_factor` must be at least 0, but is -1"),
        ({"constant_epochs": -1}, "`constant_epochs` must be at least 0, but is -1"),
    ],
)
def test_unknown_choices_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        LoopOptions(**options)
