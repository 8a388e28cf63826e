"""A program that loads a model from the cache and compares its logits with stored ones.

`hf_qrnn.hub.verify` runs it in a fresh process. It must work where the package is not: it reads
its job, a JSON object, from standard input and imports nothing of ours by itself.
"""

from __future__ import annotations

import importlib.abc
import json
import sys
from typing import Any


class _Absent(importlib.abc.MetaPathFinder):
    """A finder that hides the package, as where it is not installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Refuse the package; leave all else to the other finders."""
        if name.split(".")[0] == "hf_qrnn":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def main() -> None:
    """Do the job on standard input; write what was found as a JSON object."""
    job = json.load(sys.stdin)
    # The folder of this file is the package's: its modules must not be found as top-level ones.
    del sys.path[0]
    if not job["with_package"]:
        sys.meta_path.insert(0, _Absent())
    import torch
    import transformers
    from safetensors.torch import load_file

    if job["with_package"]:
        import hf_qrnn  # noqa: F401  (registers the models)
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    options = {"revision": job["commit"], "trust_remote_code": not job["with_package"]}
    tensors = load_file(job["file"])
    expected = tensors.pop("logits")
    for auto in job["autos"]:
        kind = getattr(transformers, auto)
        model = kind.from_pretrained(job["repo"], dtype=torch.float32, **options)
        if auto == job["auto_class"]:
            chosen = model.eval()
    with torch.no_grad():
        found = chosen(**tensors).logits
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["repo"], **options)
    ids = tokenizer(job["texts"], padding=True, return_tensors="pt")["input_ids"]
    is_same_shape = found.shape == expected.shape
    difference = (found - expected).abs().max().item() if is_same_shape else float("inf")
    answer = {
        "loaded": job["autos"],
        "is_remote": type(chosen).__module__.split(".")[0] != "hf_qrnn",
        "same_ids": torch.equal(ids, tensors["input_ids"]),
        "difference": difference,
        "largest": expected.abs().max().item(),
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
