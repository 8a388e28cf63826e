"""Group e: generate() and a decoding step as one CUDA graph, at three sizes of batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from hf_qrnn import QRNNCache, QRNNConfig, QRNNForConditionalGeneration
from hf_qrnn.speed.timing import Call, captured, interleave

from .plan import Record, Setting

BATCHES = (1, 64, 512)
SOURCE, STEPS = 100, 50
REPLAYS = 20  # steps of a round


def model_of(setting: Setting) -> QRNNForConditionalGeneration:
    """Make the paper's translator, 4 x 320, with random weights: speed does not depend on them."""
    size, layers = (8, 1) if setting.dry else (320, 4)
    config = QRNNConfig(
        vocab_size=187,
        embedding_size=size,
        hidden_size=size,
        encoder_layers=layers,
        decoder_layers=layers,
    )
    dtype = torch.float32 if setting.dry else torch.bfloat16
    return QRNNForConditionalGeneration(config).to(setting.device, dtype).eval()


def generation(setting: Setting) -> Iterator[Record]:
    """Measure ms a step: greedy by generate(), and the model's step alone, eager and as a graph."""
    model = model_of(setting)
    batches = BATCHES[:1] if setting.dry else BATCHES
    for batch in batches:
        ids = torch.randint(4, 187, (batch, 8 if setting.dry else SOURCE), device=setting.device)
        yield from _steps(setting, model, ids)
        yield _generate(setting, model, ids, "dynamic")
    # Last: there transformers compiles a step by itself, which may take longer than all else.
    for batch in batches:
        ids = torch.randint(4, 187, (batch, 8 if setting.dry else SOURCE), device=setting.device)
        yield _generate(setting, model, ids, "static")


def _record(
    setting: Setting, model: QRNNForConditionalGeneration, batch: int, way: str, seconds: float
) -> Record:
    return {
        "status": "measured",
        "bench": "decode",
        "way": way,
        "device": setting.device,
        "dtype": str(model.dtype).removeprefix("torch."),
        "layers": model.config.decoder_layers,
        "hidden": model.config.hidden_size,
        "batch": batch,
        "ms_per_step": round(1e3 * seconds, 5),
        "tokens_per_second": round(batch / seconds),
        "say": f"decoding {batch} rows, {way}: {1e3 * seconds:.3f} ms a step",
    }


def _generate(
    setting: Setting, model: QRNNForConditionalGeneration, ids: torch.Tensor, cache: str
) -> Record:
    steps = 4 if setting.dry else STEPS
    options = {"do_sample": False, "max_new_tokens": steps, "min_new_tokens": steps}

    def call() -> object:
        return model.generate(ids, cache_implementation=cache, **options)

    call()
    found = interleave(
        {"call": call}, device=setting.device, seconds=4 * setting.seconds, min_rounds=1
    )
    each = found["call"].median / steps
    return _record(setting, model, ids.shape[0], f"generate, {cache}", each)


def _steps(
    setting: Setting, model: QRNNForConditionalGeneration, ids: torch.Tensor
) -> Iterator[Record]:
    step = step_of(model, ids)
    ways: dict[str, Call] = {"eager": step}
    if not setting.dry:
        ways["graph"] = captured(step)
    calls = {name: _repeated(call) for name, call in ways.items()}
    found = interleave(calls, device=setting.device, seconds=2 * setting.seconds)
    for name, timing in found.items():
        each = timing.median / REPLAYS
        yield _record(setting, model, ids.shape[0], name, each)


def step_of(model: QRNNForConditionalGeneration, ids: torch.Tensor) -> Call:
    """Make one greedy step with a static cache: it reads and writes at fixed addresses."""
    cache = QRNNCache(model.config.decoder_layers, static=True)
    token = torch.full_like(ids[:, :1], model.config.decoder_start_token_id)
    with torch.no_grad():
        encoded = model.get_encoder()(input_ids=ids)

    @torch.no_grad()
    def step() -> object:
        out = model(
            encoder_outputs=encoded,
            decoder_input_ids=token,
            past_key_values=cache,
            use_cache=True,
        )
        token.copy_(out.logits[:, -1:].argmax(-1))
        return token

    step()  # the first one makes the tensors of the cache
    return step


def _repeated(call: Call) -> Call:
    def run() -> None:
        for _ in range(REPLAYS):
            call()

    return run
