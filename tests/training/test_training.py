"""The training loop and script: optimisation, options, run folders, and that the model learns."""

import dataclasses
import itertools
import json
import math
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from accelerate import Accelerator
from hub_stand_in import HubStandIn
from small_models import small_model
from training_script import ROOT, TORCHRUN
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from hf_qrnn import QRNNConfig, QRNNForConditionalGeneration
from hf_qrnn.data.batching import Batch, BucketBatchSampler, EncodedPair, make_loader
from hf_qrnn.data.reading import DataOptions
from hf_qrnn.data.tokenization import decode_batch, encode_batch, train_character_tokenizer
from hf_qrnn.metrics.scoring import score_translations
from hf_qrnn.training import loop
from hf_qrnn.training.checkpoint import CheckpointFolder
from hf_qrnn.training.clock import Stopwatch
from hf_qrnn.training.evaluation import mean_loss
from hf_qrnn.training.loop import LoopOptions, Trainer
from hf_qrnn.training.meter import Meter
from hf_qrnn.training.optimizers import learning_rate_factor, make_optimizer
from hf_qrnn.training.options import ModelOptions, RunOptions, parse_options
from hf_qrnn.training.translation_task import TranslationOptions, TranslationTask
from hf_qrnn.translation.search import generate_hypotheses

KINDS = (*TranslationTask.kinds, LoopOptions, RunOptions)


def pairs(num: int) -> list[EncodedPair]:
    generator = random.Random(0)
    rows = [[generator.randrange(4, 12) for _ in range(1 + i % 7)] + [1] for i in range(num)]
    return [EncodedPair(row, row[::-1][1:] + [1]) for row in rows]


def trainer(
    model: QRNNForConditionalGeneration,
    data: list[EncodedPair],
    options: LoopOptions,
    **hooks: object,
) -> Trainer:
    sampler = BucketBatchSampler(data, max_tokens=options.max_tokens)
    settings = {
        "chars_per_token": (1.0, 1.0),
        "log": lambda record: None,
        "validate": lambda step: (0.0, {}),
        "save_best": lambda: None,
        **hooks,
    }
    loader = make_loader(data, sampler, pad_token_id=0)
    return Trainer(model, loader, sampler, options, Accelerator(cpu=True), **settings)  # type: ignore[arg-type]


def test_accumulated_batches_weigh_every_token_alike() -> None:
    data, updated = pairs(8), []
    for max_tokens, accumulation in ((64, 1), (16, 10)):
        torch.manual_seed(0)
        model = small_model().double()
        options = LoopOptions(
            max_steps=1, max_tokens=max_tokens, gradient_accumulation_steps=accumulation,
            optimizer="adam", learning_rate=0.1, schedule="constant", max_grad_norm=0,
        )  # fmt: skip
        run = trainer(model, data, options)
        assert (len(run.sampler) == 1) == (max_tokens == 64)
        run.train()
        updated.append([p.detach().clone() for p in model.parameters()])
    for one, accumulated in zip(*updated, strict=True):
        torch.testing.assert_close(one, accumulated, atol=1e-6, rtol=1e-6)


def test_a_filler_batch_changes_nothing() -> None:
    model = small_model()
    run = trainer(model, pairs(4), LoopOptions(max_steps=1, max_tokens=64))
    (batch,) = list(run.loader)
    filler = Batch(batch.inputs, True, 0, 0, 0)
    grads = []
    for group in ([batch], [batch, filler]):
        torch.manual_seed(0)
        for parameter in model.parameters():
            parameter.grad = None
        run.optimizer.step = lambda: None
        run.optimizer.zero_grad = lambda: None
        run._update(group, float(batch.num_target_tokens), Meter())
        grads.append([p.grad.clone() for p in model.parameters()])
    for one, two in zip(*grads, strict=True):
        torch.testing.assert_close(one, two)


def test_gradients_are_clipped_and_their_norm_is_logged() -> None:
    records: list[dict[str, float]] = []
    options = LoopOptions(max_steps=1, max_tokens=64, max_grad_norm=1e-3, log_every=1)
    run = trainer(small_model(), pairs(8), options, log=records.append)
    seen = []
    step = run.optimizer.step
    run.optimizer.step = lambda: (
        seen.append(math.sqrt(sum(float(p.grad.square().sum()) for p in run.model.parameters())))
        or step()
    )
    run.train()
    assert records[0]["grad_norm"] > 1e-2
    assert seen[0] == pytest.approx(1e-3, rel=1e-3)


def test_learning_rate_warms_up_and_decays() -> None:
    options = LoopOptions(warmup_steps=4, schedule="cosine")
    assert [learning_rate_factor(options, step, 0.0) for step in range(5)] == [
        0.25,
        0.5,
        0.75,
        1,
        1,
    ]
    assert learning_rate_factor(options, 99, 0.5) == pytest.approx(0.5)
    assert learning_rate_factor(options, 99, 1.0) == 0.0
    linear = LoopOptions(schedule="linear")
    assert learning_rate_factor(linear, 0, 0.75) == pytest.approx(0.25)
    assert learning_rate_factor(LoopOptions(schedule="constant"), 0, 0.9) == 1.0


def test_weight_decay_is_for_matrices_only() -> None:
    model = small_model(rms_norm=True)
    decayed, others = make_optimizer(model, LoopOptions(weight_decay=0.1)).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)].rsplit(".")[-1] for p in decayed["params"]} == {"weight"}
    assert "model.shared.weight" in {names[id(p)] for p in others["params"]}
    assert all(p.dim() == 1 for p in others["params"] if "shared" not in names[id(p)])
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert len(names) == len(decayed["params"]) + len(others["params"])


def test_the_best_model_is_kept_and_validation_comes_at_the_end() -> None:
    scores = iter([1.0, 3.0, 2.0])
    saved: list[int] = []
    options = LoopOptions(max_steps=5, eval_every=2, max_tokens=16)
    run: Trainer = trainer(
        small_model(), pairs(8), options,
        validate=lambda step: (next(scores), {"at": step}),
        save_best=lambda: saved.append(run.state.step),
    )  # fmt: skip
    assert run.train().best == 3.0
    assert saved == [2, 4]
    assert next(scores, None) is None


class FakeTime:
    """The clock of training, which only a test moves: a busy machine changes no result."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def pass_by(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def fake_time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(loop, "Stopwatch", lambda: Stopwatch(fake.now))
    return fake


def test_minutes_end_training_and_steer_the_schedule(fake_time: FakeTime) -> None:
    records: list[dict[str, Any]] = []
    options = LoopOptions(max_steps=10**6, max_minutes=1 / 60, max_tokens=16, log_every=1)
    run = trainer(small_model(), pairs(8), options, log=records.append)
    run.model.register_forward_pre_hook(lambda *_: fake_time.pass_by(0.25))
    state = run.train()
    # The time of an update is known at the next one: the fifth finds the second used up.
    assert (state.step, state.seconds) == (5, 1.0)
    rates = [record["learning_rate"] for record in records if record["kind"] == "train"]
    assert len(rates) == 5
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < rates[0]


def test_the_rate_of_a_line_counts_updates_alone_and_every_update_counts(
    tmp_path: Path, fake_time: FakeTime
) -> None:
    """Validations and checkpoints take longer than the updates here."""
    records: list[dict[str, Any]] = []
    options = LoopOptions(max_steps=9, max_tokens=64, log_every=2, eval_every=1, save_every=1)

    class Slow(CheckpointFolder):
        def save(self, *arguments: Any, **keywords: Any) -> Path:
            fake_time.pass_by(0.5)
            return super().save(*arguments, **keywords)

    def validate(step: int) -> tuple[float, dict[str, float]]:
        fake_time.pass_by(0.5)
        return 0.0, {}

    run = trainer(
        small_model(), pairs(8), options, log=records.append, checkpoints=Slow(tmp_path),
        validate=validate,
    )  # fmt: skip
    run.model.register_forward_pre_hook(lambda *_: fake_time.pass_by(0.25))
    state = run.train()
    train = [record for record in records if record["kind"] == "train"]
    assert [record["step"] for record in train] == [2, 4, 6, 8, 9]
    tokens = sum(len(x.source_ids) + len(x.target_ids) for x in pairs(8))  # an update sees all
    seconds = [tokens * (2 if x["step"] < 9 else 1) / x["chars_per_second"] for x in train]
    assert seconds == pytest.approx([0.5, 0.5, 0.5, 0.5, 0.25])
    # What `max_minutes` counts: all updates but the last, also those before a validation.
    assert state.seconds == 8 * 0.25


def test_a_run_without_epochs_makes_no_update() -> None:
    run = trainer(small_model(), pairs(4), LoopOptions(epochs=0, max_tokens=64))
    before = run.weights_hash()
    assert run.train().step == 0
    assert run.weights_hash() == before


def test_logged_loss_has_no_label_smoothing() -> None:
    records: list[dict[str, float]] = []
    options = LoopOptions(
        max_steps=1, max_tokens=64, log_every=1, label_smoothing=0.3, learning_rate=0.0
    )
    data = pairs(6)
    model = small_model()
    run = trainer(model, data, options, log=records.append, chars_per_token=(1.0, 0.5))
    run.train()
    expected = mean_loss(model, make_loader(data, run.sampler, pad_token_id=0), torch.device("cpu"))
    assert records[0]["loss"] == pytest.approx(expected, rel=1e-5)
    assert records[0]["bits_per_char"] == pytest.approx(expected / math.log(2) / 0.5, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "`max_tokens` must be at least 1, but is 0."),
        (
            {"schedule": "step"},
            "`schedule` must be one of cosine, linear, constant, epochs, but is 'step'.",
        ),
        ({"optimizer": "lion"}, "`optimizer` must be one of adamw, adam"),
        ({"label_smoothing": 1.0}, r"`label_smoothing` must be in \[0, 1\)"),
    ],
)
def test_loop_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoopOptions(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "least"), [("num_beams", 1), ("no_repeat_ngram_size", 0)])
def test_translation_options_are_checked(name: str, least: int) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be at least {least}, but is {least - 1}."):
        TranslationOptions(**{name: least - 1})  # type: ignore[arg-type]
    assert getattr(TranslationOptions(**{name: least}), name) == least  # type: ignore[arg-type]


def test_flags_of_the_model_are_the_configs_fields() -> None:
    flags = {flag.name: flag for flag in dataclasses.fields(ModelOptions)}
    config = {own.name: own.default for own in dataclasses.fields(QRNNConfig)}
    assert {name: flag.default for name, flag in flags.items()} == {
        name: config[name] for name in flags
    }
    # A new field of the config is a flag, or is one of those that are not.
    assert set(QRNNConfig.__annotations__) - flags.keys() == {
        *("vocab_size", "classifier_pooling", "classifier_dropout"),
        *("use_cache", "pool_backend", "is_encoder_decoder", "is_decoder"),
        *("pad_token_id", "eos_token_id", "bos_token_id", "decoder_start_token_id"),
    }
    types = get_type_hints(ModelOptions)
    assert types["dropout"] is float
    assert types["embedding_dropout"] == float | None
    assert types["decoder_kernel_sizes"] == list[int] | None
    assert types["residual"] is bool


def test_flags_override_yaml_and_yaml_overrides_defaults(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("seed: 5\nhidden_size: 12\nencoder_kernel_sizes: [3, 2]\nlearning_rate: 1e-4\n")
    _, _, model, _, loop, run = parse_options(KINDS, ["--config", str(path), "--hidden_size", "16"])
    assert (run.seed, model.hidden_size, model.encoder_kernel_sizes) == (5, 16, [3, 2])
    assert loop.learning_rate == 1e-4
    assert loop.max_tokens == LoopOptions().max_tokens


def test_one_value_of_a_yaml_file_is_a_list_of_one_as_it_is_for_the_flag(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("distilled_file: taught.tsv\nencoder_kernel_sizes: 4\n")
    kinds = (DataOptions, ModelOptions)
    data, model = parse_options(kinds, ["--config", str(path)])
    assert (data.distilled_file, model.encoder_kernel_sizes) == (["taught.tsv"], [4])
    flags = ["--distilled_file", "taught.tsv", "--encoder_kernel_sizes", "4"]
    assert parse_options(kinds, flags) == (data, model)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hiden_size: 3", "`config` must hold known flags, but .* has 'hiden_size'"),
        ("hidden_size: big", "`hidden_size` must be int in the YAML file, but is 'big'"),
        ("- 3", "`config` must hold a mapping"),
    ],
)
def test_yaml_mistakes_are_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        parse_options(KINDS, ["--config", str(path)])
    with pytest.raises(FileNotFoundError, match="`config` must be a YAML file"):
        parse_options(KINDS, ["--config", "nowhere.yaml"])


# Those of language models and classifiers are run in test_lm_presets.py and test_classifier.py.
PRESETS = sorted([*(ROOT / "scripts/configs").glob("trans*.yaml"), ROOT / "demo/demo.yaml"])


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_are_valid(path: Path) -> None:
    options = parse_options(KINDS, ["--config", str(path)])
    fields = dict(vars(options[2]).items())
    assert QRNNConfig(**fields).pooling == "fo"


def test_paper_preset_has_the_papers_values() -> None:
    path = str(ROOT / "scripts/configs/translation_paper.yaml")
    data, _, model, search, loop, _ = parse_options(KINDS, ["--config", path])
    config = QRNNConfig(**vars(model))
    assert (config.encoder_layers, config.decoder_layers, config.hidden_size) == (4, 4, 320)
    assert config.kernel_sizes("encoder") == [6, 2, 2, 2]
    assert config.kernel_sizes("decoder") == [2, 2, 2, 2]
    assert (config.reverse_source, config.encoder_causal, config.dropout) == (True, False, 0.0)
    assert (config.attention_layers, config.pooling) == ("last", "fo")
    assert (loop.optimizer, loop.learning_rate, loop.schedule) == ("adam", 1e-3, "constant")
    assert (loop.adam_beta1, loop.adam_beta2, loop.adam_epsilon) == (0.9, 0.999, 1e-8)
    assert (loop.max_grad_norm, loop.weight_decay, loop.epochs) == (5.0, 0.0, 10.0)
    assert (data.max_chars, search.num_beams) == (300, 8)


def run_script(
    *flags: str, cwd: Path, launcher: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *launcher, str(ROOT / "scripts/train_translation.py"), *flags],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
    )


def test_script_trains_leaves_a_loadable_folder_and_pushes(tmp_path: Path, hub: HubStandIn) -> None:
    lines = [f"{'ab' * (i % 5)}c" for i in range(60)]
    for name in ("train.a", "train.b", "valid.a", "valid.b"):
        (tmp_path / name).write_text("".join(line + "\n" for line in lines))
    sizes = ["--hidden_size", "16", "--embedding_size", "8", "--encoder_layers", "1"]
    result = run_script(
        *("--train_source", "train.a", "--train_target", "train.b"),
        *("--valid_source", "valid.a", "--valid_target", "valid.b"),
        *("--test_source", "valid.a", "--test_target", "valid.b", "--num_beams", "2"),
        *("--output_dir", "out", "--max_steps", "12", "--eval_every", "6", "--log_every", "3"),
        *("--decoder_layers", "1", "--max_tokens", "128", "--cpu", "--seed", "7", *sizes),
        *("--push_to_hub", "--hub_model_id", "someone/mine", "--data_name", "Letters and such"),
        *("--no_repeat_ngram_size", "2"),
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert "HTTP Request" not in result.stderr
    assert len(hub.repos["someone/mine"].commits) == 2  # the Hub's own and ours
    pushed = hub.files("someone/mine")
    assert pushed["model.safetensors"] == (tmp_path / "out/model.safetensors").read_bytes()
    assert {"run.json", "metrics.jsonl", "test.json", "attention.png"} <= set(pushed)
    assert not any("checkpoint" in name or "hypotheses" in name for name in pushed)
    card = pushed["README.md"].decode()
    assert 'name = "someone/mine"' in card
    assert "Letters and such (60 test sentences)" in card
    assert re.search(r"\| 60 sentences \| BLEU \| [\d.]+ \+- [\d.]+ \| 2 \|", card)
    assert " --data_name 'Letters and such'" in card
    out = tmp_path / "out"
    description = json.loads((out / "run.json").read_text())
    assert description["options"]["seed"] == 7
    assert {description["data"][name] for name in ("train", "valid", "test")} == {60}
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    train = [record for record in records if record["kind"] == "train"]
    assert [record["step"] for record in train] == [3, 6, 9, 12]
    assert train[-1]["loss"] < train[0]["loss"]
    assert {"bits_per_char", "chars_per_second", "grad_norm", "padding"} <= set(train[0])
    valid = [record for record in records if record["kind"] == "valid"]
    assert [record["step"] for record in valid] == [6, 12]
    assert valid[0]["bleu_signature"].startswith("nrefs:1|case:mixed")
    assert json.loads((out / "test.json").read_text())["num_beams"] == 2
    assert len((out / "test.hypotheses.txt").read_text().split("\n")) == 61
    assert (out / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    model = AutoModelForSeq2SeqLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert model.generation_config.no_repeat_ngram_size == 2
    ids = model.generate(**tokenizer(["abc"], return_tensors="pt"), max_new_tokens=12)[0].tolist()
    assert isinstance(tokenizer.decode(ids, skip_special_tokens=True), str)
    pairs_of_ids = list(itertools.pairwise(ids))
    assert len(set(pairs_of_ids)) == len(pairs_of_ids)


def test_two_processes_end_together_and_leave_one_model(tmp_path: Path) -> None:
    lines = [f"{'ab' * (i % 5)}c" for i in range(60)]
    for name in ("train.a", "train.b"):
        (tmp_path / name).write_text("".join(line + "\n" for line in lines))
    sizes = ["--hidden_size", "8", "--embedding_size", "8", "--encoder_layers", "1"]
    result = run_script(
        *("--train_source", "train.a", "--train_target", "train.b", "--valid_source", "train.a"),
        *("--valid_target", "train.b", "--output_dir", "out", "--max_minutes", "0.02"),
        *("--max_steps", "100000", "--eval_every", "100000", "--log_every", "1"),
        *("--decoder_layers", "1", "--max_tokens", "64", "--cpu", "--num_threads", "1", *sizes),
        cwd=tmp_path,
        launcher=TORCHRUN,
    )
    assert result.returncode == 0, result.stderr
    lines = (tmp_path / "out/metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == [*range(1, steps[-1] + 1), steps[-1]]
    assert steps[-1] > 1
    AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")


def test_script_mistakes_are_one_sentence_and_exit_2(tmp_path: Path) -> None:
    result = run_script("--train_source", "nowhere.de", "--output_dir", "out", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.strip().split("\n")[-1].startswith("error: `--train_")


def test_model_learns_to_reverse_unseen_strings() -> None:
    """Strings of 5 to 20 characters, none of them seen in training, in under 90 seconds."""
    generator = random.Random(1)
    alphabet = "abcdefgh"

    def draw() -> str:
        return "".join(generator.choice(alphabet) for _ in range(generator.randrange(5, 21)))

    texts = sorted({draw() for _ in range(8000)})
    generator.shuffle(texts)
    tokenizer = train_character_tokenizer([alphabet])
    encoded = encode_batch(tokenizer, texts)
    data = [EncodedPair(row, row[-2::-1] + [1]) for row in encoded]
    model = QRNNForConditionalGeneration(
        QRNNConfig(
            vocab_size=len(tokenizer), embedding_size=96, hidden_size=96, encoder_layers=2,
            decoder_layers=2, residual=True, rms_norm=True, encoder_bidirectional=True,
            attention_layers="all", num_attention_heads=2, attention_scaling=True,
        )
    )  # fmt: skip
    options = LoopOptions(
        max_steps=10**6, max_minutes=1.0, max_tokens=1024, learning_rate=4e-3, warmup_steps=50
    )
    state = trainer(model, data[100:], options).train()
    best = generate_hypotheses(model, [pair.source_ids for pair in data[:100]], batch_size=50)
    reversed_texts = decode_batch(tokenizer, [hypotheses[0].ids for hypotheses in best])
    # Every character is a word to BLEU.
    spaced = [" ".join(text) for text in reversed_texts]
    scores = score_translations(spaced, [" ".join(text[::-1]) for text in texts[:100]])
    assert scores.bleu is not None
    assert scores.bleu.score >= 95.0, f"BLEU {scores.bleu.score:.1f} after {state.step} updates"
