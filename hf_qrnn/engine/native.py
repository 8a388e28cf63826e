"""The engine's network in C++ (`hf_qrnn/kernels/csrc/engine`), behind a plain C interface.

Shapes: B sources, M rows of each, R = B * M rows, V vocabulary.
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_qrnn.kernels.build import ENGINE_NAME, engine_path

from .int8 import Int8Matrix
from .network import AttentionBlock, Layer, Network, OutputAttention
from .settings import NUM_GATES
from .threads import Stop
from .weights import Array, Matrix

CURE = "run `python -m hf_qrnn.kernels.build`"
INSTRUCTION_SETS = ("baseline", "avx2", "avx512", "vnni")
HAVE_AVX512 = ("avx512", "vnni")
_KINDS = {type(None): 0, OutputAttention: 1, AttentionBlock: 2}

# Of a call of greedy search, in tokens of sources that are attended to: it takes a fraction of a
# second, so that Ctrl-C is heard between two.
_WORK, _ROW_WORK, _MOST_STEPS = 4_000_000, 1000, 256
_DONE, _NAN = 1, 2

_CALLBACK = ctypes.CFUNCTYPE(None)
_Integers = npt.NDArray[np.int64]


@functools.cache
def library() -> Any:
    """Load the library, once in a process: beside the package, else in the user's cache.

    Raises:
        OSError: If it is not built or does not load.
    """
    beside = Path(__file__).resolve().parents[1] / "kernels" / "lib" / ENGINE_NAME
    path = beside if beside.is_file() else engine_path()
    if not path.is_file():
        raise OSError(f"the engine's library is not built: {CURE}")
    loaded = ctypes.CDLL(str(path))
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    functions: dict[str, tuple[Any, list[Any]]] = {
        "qrnn_num_instruction_sets": (number, []),
        "qrnn_network_new": (pointer, [pointer, ctypes.c_double, pointer, number, _CALLBACK]),
        "qrnn_int8_product": (
            number,
            [number, pointer, number, number, pointer, pointer, number, pointer],
        ),
        "qrnn_network_free": (None, [pointer]),
        "qrnn_decoder_new": (pointer, [pointer, pointer, pointer, number, number, pointer]),
        "qrnn_decoder_free": (None, [pointer]),
        "qrnn_decoder_step": (number, [pointer, pointer, pointer]),
        "qrnn_decoder_select": (number, [pointer, pointer, number, pointer, number]),
        "qrnn_decoder_greedy": (
            number,
            [pointer, number, pointer, number, pointer, number, pointer, pointer, pointer],
        ),
    }
    for name, (result, arguments) in functions.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    return loaded


def instruction_sets() -> tuple[str, ...]:
    """List the instruction sets this CPU runs, the widest last."""
    return INSTRUCTION_SETS[: library().qrnn_num_instruction_sets()]


class NativeNetwork:
    """A network whose weights are packed for C++.

    Args:
        network: Its weights; they are copied.
        instruction_set: One of `instruction_sets()`; None is the widest.
        halves: Keep matrices of floats in bfloat16: exact where they come from it.
        taken: Called after each weight that has been copied.

    Raises:
        OSError: If there is no library.
        MemoryError: If there is not enough memory.
    """

    def __init__(
        self,
        network: Network,
        instruction_set: str | None = None,
        *,
        halves: bool = False,
        taken: Callable[[], None] = lambda: None,
    ) -> None:
        self._library = library()
        self.settings = network.settings
        fields, weights = _described(network, halves)
        index = INSTRUCTION_SETS.index(instruction_set or instruction_sets()[-1])
        numbers = np.array(fields, np.int64)
        # Kept until they are packed: a pointer keeps nothing.
        arrays = [None if x is None else _readable(x) for x in weights]
        pointers = (ctypes.c_void_p * len(arrays))(
            *(None if array is None else array.ctypes.data for array in arrays)
        )
        self.handle = _checked(
            self._library.qrnn_network_new(
                numbers.ctypes.data,
                network.settings.score_scale,
                pointers,
                index,
                _CALLBACK(taken),
            )
        )
        weakref.finalize(self, self._library.qrnn_network_free, self.handle)


class NativeDecoder:
    """The decoder over some sources; as `NumpyDecoder`, with greedy search in one call.

    Args:
        network: The model.
        sources: Token ids, none of them empty.
        rows_each: M.
        stop: Ends the work by an error, within the encoder and before each step.
    """

    def __init__(
        self,
        network: NativeNetwork,
        sources: Sequence[Sequence[int]],
        rows_each: int,
        stop: Stop | None = None,
    ) -> None:
        self._network, self._library = network, library()
        vocab = network.settings.vocab_size
        lengths = np.array([len(source) for source in sources], np.int64)
        ids = np.concatenate([np.asarray(source, np.int64) for source in sources])
        # C++ trusts what it is given.
        assert lengths.min() > 0, "a source has a token"
        assert ids.min() >= 0, "ids count from 0"
        assert ids.max() < vocab, "ids are in the vocabulary"
        self._rows_each, self._num_sources = rows_each, len(sources)
        self._stop, self._num_ids = stop or Stop(), len(ids)
        self._num_rows = len(sources) * rows_each
        places = (network.handle, ids.ctypes.data, lengths.ctypes.data)
        flag = self._stop.flag.ctypes.data
        handle = self._library.qrnn_decoder_new(*places, len(sources), rows_each, flag)
        self._stop.check()
        self._handle = _checked(handle)
        weakref.finalize(self, self._library.qrnn_decoder_free, self._handle)

    def step(self, tokens: npt.NDArray[np.integer[Any]]) -> Array:
        """Read a token of each row (R,) and return the logits of the next (R, V)."""
        ids = _integers(tokens)
        assert ids.shape == (self._num_rows,), "a token of each row"
        vocab = self._network.settings.vocab_size
        assert 0 <= ids.min() <= ids.max() < vocab, "tokens are in the vocabulary"
        logits = np.empty((self._num_rows, vocab), np.float32)
        self._call("step", ids.ctypes.data, logits.ctypes.data)
        return logits

    def select(
        self,
        rows: npt.NDArray[np.integer[Any]],
        sources: npt.NDArray[np.integer[Any]] | None = None,
    ) -> None:
        """Go on with `rows` of the state, and where given with `sources` of the memory only."""
        rows = _integers(rows)
        kept = _integers([] if sources is None else sources)
        num_sources = self._num_sources if sources is None else len(kept)
        assert len(rows) == num_sources * self._rows_each, "rows of every source"
        assert 0 <= rows.min() <= rows.max() < self._num_rows, "there are such rows"
        if sources is not None:
            assert 0 <= kept.min() <= kept.max() < self._num_sources, "there are such sources"
            assert len(np.unique(kept)) == len(kept), "a source is moved, not copied"
        place = None if sources is None else kept.ctypes.data
        self._call("select", rows.ctypes.data, len(rows), place, len(kept))
        self._num_rows, self._num_sources = len(rows), num_sources

    def greedy(
        self, start: int, ends: Sequence[int], limits: Sequence[int]
    ) -> tuple[_Integers, _Integers, npt.NDArray[np.float64]] | None:
        """Take the likeliest token of every row until it ends; this decoder is done then.

        Args:
            start: The token before the first.
            ends: Tokens that end a row.
            limits: The most tokens of each.

        Returns:
            Ids (B, T), lengths (B,), and sums of log-probabilities (B,); None if the
            model computes NaN.
        """
        assert 0 <= start < self._network.settings.vocab_size, "the start is a token"
        assert min(limits) > 0, "a row has a step"
        assert len(limits) == self._num_rows == self._num_sources, "one row a source"
        most, stops = _integers(limits), _integers(ends)
        lengths, scores = np.zeros(len(most), np.int64), np.zeros(len(most))
        work = self._num_ids + _ROW_WORK * len(most)
        steps = max(1, min(_MOST_STEPS, _WORK // work, int(most.max())))
        inputs = (start, stops.ctypes.data, len(stops), most.ctypes.data, steps)
        self._num_rows, status = 0, 0
        parts: list[_Integers] = []  # a limit may be far behind the end
        while status != _DONE:
            parts.append(np.zeros((len(most), steps), np.int64))
            outputs = (parts[-1].ctypes.data, lengths.ctypes.data, scores.ctypes.data)
            status = self._call("greedy", *inputs, *outputs)
            if status == _NAN:
                return None
        return np.concatenate(parts, axis=1), lengths, scores

    def _call(self, name: str, *arguments: Any) -> int:
        self._stop.check()
        status = int(getattr(self._library, f"qrnn_decoder_{name}")(self._handle, *arguments))
        if status < 0:
            raise MemoryError(
                "There must be memory for the engine's state, but there is not enough."
            )
        return status


def _integers(values: Any) -> _Integers:
    return np.ascontiguousarray(values, np.int64)


def _readable(weight: Array) -> Array:
    """Return float32 or int8 as C++ reads them: in a file floats may begin anywhere."""
    dtype = np.int8 if weight.dtype == np.int8 else np.float32
    return np.require(weight, dtype, ["C", "A"])


def _checked(handle: int | None) -> int:
    if handle is None:
        raise MemoryError("There must be memory for the engine's model, but there is not enough.")
    return handle


def _described(network: Network, halves: bool) -> tuple[list[int], list[Array | None]]:
    """Return the numbers and the weights of a network in the order `make_network` reads them."""
    settings = network.settings
    fields = [
        list(NUM_GATES).index(settings.pooling),
        NUM_GATES[settings.pooling],
        settings.hidden_size,
        settings.embedding_size,
        settings.vocab_size,
        settings.num_attention_heads,
        settings.feed_forward_size,
        settings.encoder_causal,
        network.projection is not None,
        halves,
        len(network.encoder),
        len(network.decoder),
    ]
    weights: list[Array | None] = [network.embedding]
    for layer in (*network.encoder, *network.decoder):
        fields += [
            layer.input_size,
            layer.kernel_size,
            layer.adds_input,
            layer.keeps_input,
            _KINDS[type(layer.attention)],
            len(layer.reverses),
            *layer.reverses,
        ]
        weights += _weights_of(layer)
    weights += [network.encoder_norm, network.decoder_norm, *_places(network.projection)]
    fields.append(network.output.shape[1])
    weights += [*_places(network.output), network.output_bias]
    return list(map(int, fields)), weights


def _weights_of(layer: Layer) -> list[Array | None]:
    weights: list[Array | None] = []
    for convolution in layer.directions:
        weights += [*_places(convolution.weight), convolution.bias]
    weights.append(layer.norm)
    if layer.feed_forward is not None:
        block = layer.feed_forward
        gate, inner = _halves(block.gate_and_in)
        weights += [block.norm, *_places(gate), *_places(inner), *_places(block.out)]
    if layer.encoding is not None:
        weights += _places(layer.encoding)
    attention = layer.attention
    if isinstance(attention, OutputAttention):
        weights += [*_places(attention.context), *_places(attention.cell)]
    if isinstance(attention, AttentionBlock):
        weights.append(attention.norm)
        for matrix in (attention.query, attention.key_value, attention.out):
            weights += _places(matrix)
    return weights


def _places(matrix: Matrix | None) -> list[Array | None]:
    """Return the two places of a matrix: its numbers, and the scales of int8 rows or nothing."""
    if isinstance(matrix, Int8Matrix):
        return [matrix.numbers, matrix.scales]
    return [matrix, None]


def _halves(matrix: Matrix) -> tuple[Matrix, Matrix]:
    if isinstance(matrix, Int8Matrix):
        return matrix.split()
    above, below = np.split(matrix, 2)
    return above, below
