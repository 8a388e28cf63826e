"""The work of test_multiprocess.py's processes: gradients, evaluation, sharding.

    torchrun ... tests/support/multiprocess_worker.py FOLDER WHAT ...

The first process writes what it finds to FOLDER/WHAT.json or .safetensors. The functions here also
run in the test itself, in one process, for comparison.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from small_models import small_model

from hf_qrnn.data.batching import (
    BatchPlan,
    BucketBatchSampler,
    EncodedPair,
    encode_pairs,
    make_loader,
)
from hf_qrnn.data.reading import TextPair
from hf_qrnn.data.tokenization import train_character_tokenizer
from hf_qrnn.training import run_state
from hf_qrnn.training.checkpoint import CheckpointFolder, hash_tensors, read_checkpoint
from hf_qrnn.training.evaluation import mean_loss, score_pairs
from hf_qrnn.training.loop import LoopOptions, Trainer
from hf_qrnn.training.meter import Meter
from hf_qrnn.training.processes import Processes


def sixteen_pairs() -> list[EncodedPair]:
    """Make sources of one length, so that batches are cut by number, and targets of many."""
    generator = random.Random(0)

    def ids(length: int) -> list[int]:
        return [*(generator.randrange(4, 12) for _ in range(length - 1)), 1]

    return [EncodedPair(ids(12), ids(1 + i % 11)) for i in range(16)]


def gradients(accumulation: int, rows: int, num_pairs: int = 16) -> dict[str, torch.Tensor]:
    """Compute the gradients of one update over the first pairs.

    There are `rows` pairs a batch and `accumulation` batches a process.
    """
    accelerator = Accelerator(cpu=True)
    data = sixteen_pairs()[:num_pairs]
    options = LoopOptions(
        max_steps=1, max_tokens=12 * rows, gradient_accumulation_steps=accumulation, max_grad_norm=0
    )
    share = {"world_size": accelerator.num_processes, "rank": accelerator.process_index}
    sampler = BucketBatchSampler(data, max_tokens=options.max_tokens, **share)
    trainer = Trainer(
        small_model(),
        make_loader(data, sampler, pad_token_id=0),
        sampler,
        options,
        accelerator,
        chars_per_token=(1.0, 1.0),
        log=lambda record: None,
        validate=lambda step: (0.0, {}),
        save_best=lambda: None,
    )
    (group,) = [list(trainer.loader)]
    assert len(group) == accumulation
    trainer.optimizer.step = lambda: None
    trainer.optimizer.zero_grad = lambda: None
    trainer._update(group, trainer._sync_processes(group, 0.0, False), Meter())
    model = accelerator.unwrap_model(trainer.model)
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def evaluation(count: int) -> dict[str, object]:
    """Compute loss, scores and translations of `count` pairs by a model that half knows them."""
    accelerator = Accelerator(cpu=True)
    processes = Processes(accelerator)
    generator = random.Random(1)
    words = ["abba", "dada", "cab", "bad", "add"]
    texts = [" ".join(generator.choices(words, k=4 + i * 5 % 3)) for i in range(count)]
    tokenizer = train_character_tokenizer(texts)
    model = small_model(vocab_size=len(tokenizer), hidden_size=32)
    pairs = [TextPair(text[::2], text) for text in texts]
    encoded = encode_pairs(tokenizer, pairs)
    (batch,) = make_loader(encoded, [BatchPlan(list(range(count)))], pad_token_id=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(60):
        model(**batch.inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    share = {"world_size": processes.count, "rank": processes.rank}
    sampler = BucketBatchSampler(encoded, max_tokens=60, shuffle=False, **share)
    loader = make_loader(encoded, sampler, pad_token_id=0)
    prepared = accelerator.prepare(model)
    loss = mean_loss(prepared, loader, accelerator.device, processes)
    record, texts = score_pairs(
        model, tokenizer, [pair.source_ids for pair in encoded], [pair.target for pair in pairs],
        processes, batch_size=3,
    )  # fmt: skip
    return {"loss": loss, "record": record, "texts": texts}


def sharded(folder: Path) -> dict[str, object]:
    """Restore a checkpoint of a model that FSDP2 has sharded into another."""
    from torch.distributed.fsdp import fully_shard

    accelerator = Accelerator(cpu=True)

    def prepared() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        model = small_model()
        fully_shard(model)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        ids = torch.arange(4, 12)[None]
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    model, optimizer = prepared()
    step(model, optimizer)
    tensors = {
        "model": run_state.full_weights(model),
        "optimizer": run_state.optimizer_tensors(model, optimizer),
    }
    checkpoints = CheckpointFolder(folder / "checkpoints")
    if accelerator.is_main_process:
        checkpoints.save(1, tensors, {})
    accelerator.wait_for_everyone()
    newest = checkpoints.newest()
    assert newest is not None
    read = read_checkpoint(newest)
    other, other_optimizer = prepared()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    run_state.set_weights(other, read.tensors["model"])
    run_state.set_optimizer_tensors(other, other_optimizer, read.tensors["optimizer"])
    for pair in ((model, optimizer), (other, other_optimizer)):
        step(*pair)
    hashes = [hash_tensors(run_state.full_weights(each)) for each in (model, other)]
    return {"hashes": hashes, "names": sorted(tensors["model"])}


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    results = {
        "gradients-2x8": gradients(1, 8),
        "gradients-2x2x4": gradients(2, 4),
        "gradients-filler": gradients(1, 8, num_pairs=8),
        "evaluation": evaluation(11),
        "sharded": sharded(folder),
    }
    if Accelerator(cpu=True).is_main_process:
        for name, result in results.items():
            if name.startswith("gradients"):
                save_file(result, folder / f"{name}.safetensors")
            else:
                (folder / f"{name}.json").write_text(json.dumps(result))
    # Else one process may take the group away while the other still uses it.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
