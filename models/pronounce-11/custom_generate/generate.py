"""The engine for whoever names this model's repository: `generate(custom_generate=NAME)`.

A push stores this file beside the model as `custom_generate/generate.py`. Nothing here needs the
package before the function is called: whoever loads the model with `trust_remote_code=True` loads
this file too, be the package installed or not.
"""

import importlib
from typing import Any

# Keywords of generate() that say which file of the Hub this is; the search has no use for them.
_LOADING = (
    "cache_dir", "force_download", "local_files_only", "proxies", "repo_type", "revision", "token",
)  # fmt: skip


def generate(*inputs: Any, model: Any, **arguments: Any) -> Any:
    """Search as `model.generate(*inputs, **arguments)` does, by the engine.

    Returns:
        What generate() returns.

    Raises:
        ImportError: If the package is not installed.
        ValueError: If the engine does not do what is asked.
    """
    kind = type(model)
    # transformers puts this function in the place of the method, unless the model's class takes it
    # away again. A search that does not ask for the engine stays torch's.
    if vars(model).pop("generate", None) is not None:
        return kind.generate(model, *inputs, **arguments)
    try:
        module = importlib.import_module("hf_qrnn.translation.native_generate")
    except ImportError as error:
        raise ImportError(
            "`custom_generate` of this model needs the package hf_qrnn of release 0.2.0 or later, "
            f"but: {error}. Install it with pip from a clone of its repository, or leave "
            "`custom_generate` out: torch searches then."
        ) from error
    kept = {name: value for name, value in arguments.items() if name not in _LOADING}
    return kind.generate(model, *inputs, **kept, custom_generate=module.native_generate)
