"""The native table: C kernels for CPUs, in `csrc/`. Activations are float32; weights and cache bfloat16 or float32.
Where weights are bfloat16, products with them and with codes round their rows to bfloat16.

Each output row is to the bit what it would be alone: no sum depends on the batch, the chunk or the threads.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from plimsoll.api.device import native_table
from plimsoll.api.layers_at_once import FEW_ROWS, covers
from plimsoll.api.model import Activation, ModelFacts
from plimsoll.api.sizes import PROMPT_LOGIT_ROWS
from plimsoll.runtime.kernels.build import NativeUnavailableError, load
from plimsoll.runtime.kernels.native_attention import native_attention, native_write_kv
from plimsoll.runtime.kernels.native_checks import (
    answered,
    check_cache,
    check_floats,
    check_integers,
    check_vectors,
)
from plimsoll.runtime.kernels.native_draw import DRAW_SIGNATURE, native_draw
from plimsoll.runtime.kernels.native_layers import (
    LAYERS_SIGNATURE,
    WIDE_LAYERS_SIGNATURE,
    NativeLayers,
    has_codes,
)
from plimsoll.runtime.kernels.native_quantized import (
    PACK_SIGNATURE,
    PackedQuantized,
    embed_quantized,
    linear_quantized,
    pack_quantized,
)
from plimsoll.runtime.kernels.table import Kernels, RunLayers
from plimsoll.runtime.machine.large_pages import room

__all__ = ["NativeUnavailableError", "PackedWeight", "native_kernels", "packed_bytes"]

UNPACK_ELEMENTS = 4 * 1024 * 1024
"""Elements of a weight unpacked at once for torch."""
KINDS = {torch.bfloat16: "bf16", torch.float32: "f32"}
_P, _L, _F, _I = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_int
SIGNATURES: dict[str, list[Any]] = {
    "pack_": [_P, _P, _L, _L],
    "unpack_": [_P, _P, _L, _L],
    "embed_": [_P, _P, _P, _L, _L, _L],
    "linear_": [_P, _P, _P, _P, _L, _L, _L],
    "pack_quant": PACK_SIGNATURE,
    "unpack_quant": [_I, _I, _P, _P, _L, _L, _L],
    "embed_quant": [_I, _I, _P, _P, _P, _L, _L, _L, _L],
    "linear_quant": [_I, _I, _P, _P, _P, _P, _L, _L, _L, _L],
    "linear_int8": [_I, _I, _P, _P, _P, _P, _L, _L, _L, _L],
    "write_kv": [_I, _P, _L, _L, _P, _L, _L, _P, _P, _P, _L, _L, _L, _L, _L],
    "rms_norm": [_P, _L, _L, _L, _L, _P, _P, _L, _F],
    "add_rms_norm": [_P, _P, _P, _P, _L, _L, _F],
    "layer_norm": [_P, _P, _P, _P, _L, _L, _F],
    "activate": [_I, _I, _P, _P, _L, _L],
    "rope": [_P, _L, _L, _L, _P, _L, _L, _L, _P, _P, _L, _L],
    "attention": [_P, _L, _L, _P, _P, _I, _P, _P, _P, _P, _L, _L, _L, _L, _L, _L, _L, _L, _F, _L, _F],
    "run_layers": LAYERS_SIGNATURE,
    "run_wide_layers": WIDE_LAYERS_SIGNATURE,
    "draw_tokens": DRAW_SIGNATURE,
}


CHECKED = (
    "attention", "linear_", "linear_quant", "linear_int8", "run_layers", "run_wide_layers", "embed_", "embed_quant",
    "write_kv", "draw_tokens",
)  # fmt: skip
"""They return what `native_checks.answered` takes."""


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """[N, K] in panels of outputs, as `csrc/gemm_bf16.c` and `gemm_f32.c` have them; the last one filled with zeros."""

    data: Tensor
    rows: int
    columns: int
    address: int

    @property
    def nbytes(self) -> int:
        return self.data.nbytes


KEPT_ROWS = 256
"""Rows from which an operation's result lies in memory that is kept."""
KEPT_PRODUCTS = PROMPT_LOGIT_ROWS + 1
"""The same of a product: pages that come and go with the logits of each step cost more than a copy of them. Logits of a
prompt, which are made while those of the step are in use, have fewer rows."""


class Results:
    """Where operations put what they return: [rows, columns] float32.

    Results of large steps lie in buffers that are kept, one for each operation and width, until that operation's next
    result of that width. So a step's memory is a sum the budget can state, not what an allocator's holes make of it.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[str, int], Tensor] = {}

    def take(self, operation: str, rows: int, columns: int, kept: int = KEPT_ROWS) -> Tensor:
        """A tensor [rows, columns] for a result. One of `kept` rows is valid until this operation's next result."""
        if rows < kept:
            return torch.empty(rows, columns)
        key, count = (operation, columns), rows * columns
        if key not in self._kept or len(self._kept[key]) < count:
            self._kept.pop(key, None)
            self._kept[key] = torch.empty(count)
        return self._kept[key][:count].view(rows, columns)


def packed_bytes(rows: int, columns: int, dtype: torch.dtype) -> int:
    """Bytes a weight [rows, columns] takes once packed: rows are padded to the panel. Raises NativeUnavailableError."""
    panel = native_library().panel_width()
    return -(-rows // panel) * panel * columns * dtype.itemsize


@cache
def native_library() -> ctypes.CDLL:
    """The library, its operations declared. Raises NativeUnavailableError."""
    loaded = load()
    for name, arguments in SIGNATURES.items():
        for symbol in [name + kind for kind in KINDS.values()] if name.endswith("_") else [name]:
            function = getattr(loaded, symbol)
            function.argtypes = arguments
            function.restype = _I if name in CHECKED else None
    loaded.wide_floats.restype = _L
    loaded.panel_width.restype = loaded.threads_in_use.restype = _L
    loaded.instructions_in_use.restype = ctypes.c_char_p
    return loaded


def threads_in_use() -> int:
    """Threads a parallel kernel really gets. Raises NativeUnavailableError."""
    return int(native_library().threads_in_use())


def native_kernels(
    device: torch.device | str, weight_dtype: torch.dtype, wide_rows: int | None = None, *, int8: bool = False
) -> Kernels:
    """The table for weights and cache of `weight_dtype`, bfloat16 or float32, with float32 activations.

    `wide_rows`: products of at least so many rows go through torch's, with activations rounded to the weights' dtype;
    it pays where torch multiplies bfloat16 in hardware. None is never. A row's bits then depend on which side its chunk
    falls.

    `int8`: rows are quantized to 8 bits where they meet codes of 4 or 8 bits (`csrc/int8.h`).

    Raises NativeUnavailableError where it cannot be built, or for another device or dtype.
    """
    device = torch.device(device)
    if device.type != "cpu" or weight_dtype not in KINDS:
        raise NativeUnavailableError(
            f"they run {' and '.join(map(str, KINDS))} on a CPU, not {weight_dtype} on {device}"
        )
    library, kind, results = native_library(), KINDS[weight_dtype], Results()
    return Kernels(
        name=f"native-{library.instructions_in_use().decode('ascii')}{_int8_name(library) if int8 else ''}",
        device=device,
        dtype=torch.float32,
        pack=_pack(getattr(library, f"pack_{kind}"), weight_dtype),
        pack_quantized=pack_quantized(library),
        embedding=_embedding(getattr(library, f"embed_{kind}"), library, results),
        linear=_linear(library, kind, wide_rows, results, int8),
        rms_norm=_rms_norm(library.rms_norm, results),
        add_rms_norm=_add_rms_norm(library.add_rms_norm, results),
        layer_norm=_layer_norm(library.layer_norm, results),
        activate=_activate(library.activate, results),
        rope=_rope(library.rope),
        write_kv=native_write_kv(library.write_kv, weight_dtype),
        attention=native_attention(library.attention, weight_dtype, results.take),
        facts=native_table(library.panel_width(), wide_rows is not None, bool(library.int8_is_faster())),
        varies=None if wide_rows is None else f"torch multiplies steps of {wide_rows} rows and more",
        layers=_layers(library, weight_dtype, wide_rows, int8),
        draw=native_draw(library.draw_tokens),
    )


def _int8_name(library: Any) -> str:
    return "-int8-vnni" if library.vnni_works() else "-int8-dotprod" if library.sdot_works() else "-int8"


def _layers(library: Any, dtype: torch.dtype, wide_rows: int | None, int8: bool) -> Callable[..., RunLayers | None]:
    few = FEW_ROWS if wide_rows is None else min(FEW_ROWS, wide_rows)

    def layers(facts: ModelFacts, *model: Any) -> RunLayers | None:
        # In one call, products with codes round their rows.
        if not covers(facts) or (dtype == torch.float32 and not int8 and has_codes(model[0])):
            return None
        return NativeLayers(
            library, partial(check_cache, dtype), few - 1, facts, *model, int8=int8, wide=wide_rows is None
        )

    return layers


def _pack(function: Any, dtype: torch.dtype) -> Callable[[Tensor], PackedWeight]:
    def pack(weight: Tensor) -> PackedWeight:
        rows, columns = weight.shape
        if not rows or not columns:
            raise ValueError(f"a weight of {rows} x {columns} holds nothing")
        weight = weight.to(dtype).contiguous()
        data = room(packed_bytes(rows, columns, dtype)).view(dtype)
        function(weight.data_ptr(), data.data_ptr(), rows, columns)
        return PackedWeight(data, rows, columns, data.data_ptr())

    return pack


def _embedding(
    function: Any, library: Any, results: Results
) -> Callable[[Tensor, PackedWeight | PackedQuantized], Tensor]:
    def embedding(ids: Tensor, weight: PackedWeight | PackedQuantized) -> Tensor:
        ids = check_integers(ids, torch.int64, "token ids")
        out = results.take("embedding", len(ids), weight.columns)
        if isinstance(weight, PackedQuantized):
            embed_quantized(library, ids, weight, out)
            return out
        failed = function(ids.data_ptr(), weight.address, out.data_ptr(), len(ids), weight.rows, weight.columns)
        answered(failed, f"a token id is not below {weight.rows}")
        return out

    return embedding


def _linear(
    library: Any, kind: str, wide_rows: int | None, results: Results, int8: bool
) -> Callable[[Tensor, PackedWeight | PackedQuantized, Tensor | None], Tensor]:
    function, unpack = getattr(library, f"linear_{kind}"), getattr(library, f"unpack_{kind}")
    panel = library.panel_width()

    def unpacked(weight: PackedWeight | PackedQuantized, start: int, stop: int) -> Tensor:
        if isinstance(weight, PackedQuantized):
            return weight.unpack_rows(library, start, stop)
        run = torch.empty(stop - start, weight.columns, dtype=weight.data.dtype)
        unpack(weight.data[start * weight.columns :].data_ptr(), run.data_ptr(), stop - start, weight.columns)
        return run

    def linear(x: Tensor, weight: PackedWeight | PackedQuantized, bias: Tensor | None) -> Tensor:
        (count, width), rows, columns = x.shape, weight.rows, weight.columns
        if width != columns:
            raise ValueError(f"x has {width} columns, the weight takes {columns}")
        check_floats(x=x)
        check_vectors(rows, bias=bias)
        out = results.take("linear", count, rows, KEPT_PRODUCTS)
        if wide_rows is not None and count >= wide_rows:
            _through_torch(unpacked, panel, x, weight, bias, out)
        elif count and isinstance(weight, PackedQuantized):
            linear_quantized(library, x, weight, bias, out, exact=kind == "f32", int8=int8)
        elif count:
            added = None if bias is None else bias.data_ptr()
            dense = x.contiguous()  # Named, so that it lives until the call returns: C asks for memory of its own.
            failed = function(dense.data_ptr(), weight.address, added, out.data_ptr(), count, rows, columns)
            answered(failed, "")
        return out

    return linear


def _through_torch(
    unpacked: Callable[[PackedWeight | PackedQuantized, int, int], Tensor],
    panel: int,
    x: Tensor,
    weight: PackedWeight | PackedQuantized,
    bias: Tensor | None,
    out: Tensor,
) -> None:
    """out = x w^T + bias by torch's product of bfloat16, a run of unpacked rows at a time."""
    step, narrow = max(1, UNPACK_ELEMENTS // weight.columns // panel) * panel, None
    for start in range(0, weight.rows, step):
        stop = min(start + step, weight.rows)
        run = unpacked(weight, start, stop)
        narrow = x.to(run.dtype) if narrow is None else narrow
        out[:, start:stop] = functional.linear(narrow, run)
    if bias is not None:
        out += bias


def _rms_norm(function: Any, results: Results) -> Callable[[Tensor, Tensor, float], Tensor]:
    def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        check_vectors(x.shape[-1], weight=weight)
        check_floats(x=x)
        # Norms of queries and keys are both alive at once, and may be equally wide: they never share a buffer.
        out = results.take("norm", *x.shape) if x.dim() == 2 else torch.empty(x.shape)
        if x.dim() != 3 or x.stride(2) != 1:
            x = x.reshape(1, -1, x.shape[-1]).contiguous()
        outer, inner, columns = x.shape
        function(x.data_ptr(), outer, inner, x.stride(0), x.stride(1), weight.data_ptr(), out.data_ptr(), columns, eps)
        return out

    return rms_norm


def _add_rms_norm(function: Any, results: Results) -> Callable[[Tensor, Tensor, Tensor, float], Tensor]:
    def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        if not residual.is_contiguous():
            raise ValueError("residual is changed in place and must be contiguous")
        rows, columns = x.shape
        check_floats(x=x, residual=residual)
        check_vectors(columns, weight=weight)
        if residual.shape != x.shape:
            raise ValueError(f"residual is {tuple(residual.shape)} and x {tuple(x.shape)}")
        out = results.take("norm", rows, columns)
        if out.data_ptr() == x.data_ptr():
            out = torch.empty(rows, columns)
        function(x.contiguous().data_ptr(), residual.data_ptr(), weight.data_ptr(), out.data_ptr(), rows, columns, eps)
        return out

    return add_rms_norm


def _layer_norm(function: Any, results: Results) -> Callable[[Tensor, Tensor, Tensor | None, float], Tensor]:
    def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        columns = x.shape[-1]
        check_vectors(columns, weight=weight, bias=bias)
        check_floats(x=x)
        dense = x.reshape(-1, columns).contiguous()
        out = results.take("norm", *x.shape) if x.dim() == 2 else torch.empty(x.shape)
        if out.data_ptr() == dense.data_ptr():
            out = torch.empty(x.shape)
        added = None if bias is None else bias.data_ptr()
        function(dense.data_ptr(), weight.data_ptr(), added, out.data_ptr(), len(dense), columns, eps)
        return out

    return layer_norm


ACTIVATIONS: tuple[Activation, ...] = ("silu", "gelu", "gelu_tanh", "relu2")
"""In the order of `csrc/rowwise.h`."""


def _activate(function: Any, results: Results) -> Callable[[Tensor, Activation, bool], Tensor]:
    def activate(x: Tensor, activation: Activation, gated: bool) -> Tensor:
        rows, columns = x.shape
        if gated and columns % 2:
            raise ValueError(f"gate and up are {columns} columns together: they must be equally wide")
        check_floats(x=x)
        out = results.take("activate", rows, columns // 2 if gated else columns)
        kind = ACTIVATIONS.index(activation)
        function(kind, int(gated), x.contiguous().data_ptr(), out.data_ptr(), rows, out.shape[1])
        return out

    return activate


def _rope(function: Any) -> Callable[[Tensor, Tensor, Tensor, Tensor], None]:
    def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> None:
        (rows, heads, dim), kv_heads = q.shape, k.shape[1]
        (q_row, q_head, q_step), (k_row, k_head, k_step) = q.stride(), k.stride()
        if q_step != 1 or k_step != 1:
            raise ValueError("q and k are changed in place and their heads must be contiguous")
        cos, sin = cos.contiguous(), sin.contiguous()
        check_floats(q=q, k=k, cos=cos, sin=sin)
        if len(k) != rows or k.shape[2] != dim or not cos.shape == sin.shape == (rows, dim // 2):
            raise ValueError(f"q {tuple(q.shape)}, k {tuple(k.shape)} and angles {tuple(cos.shape)} do not fit")
        function(
            q.data_ptr(), heads, q_row, q_head, k.data_ptr(), kv_heads, k_row, k_head,
            cos.data_ptr(), sin.data_ptr(), rows, dim,
        )  # fmt: skip

    return rope
