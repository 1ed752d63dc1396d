"""Products with weights of 4 and 8 bits on CUDA: dequantized in registers, block by block, on the way into `tl.dot`.

The weights are the plain table's own (`TorchQuantized`), and its `linear` is the twin that this one is held to. Import
it where triton is: nothing else of the package needs it.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from plimsoll.runtime.kernels.quantized import SUPER, TorchQuantized
from plimsoll.runtime.kernels.table import Kernels
from plimsoll.runtime.kernels.torch_ops import linear as plain_linear
from plimsoll.runtime.kernels.torch_ops import torch_kernels

PROGRAMS = 128
"""Programs that keep a device busy: products of few rows are split along K up to about so many."""


@dataclass(frozen=True)
class Launch:
    """Of one product: sizes of a block, and in how many parts K is summed. Partial sums are added in order, so a result
    does not depend on which part ends first."""

    block_m: int
    block_n: int
    block_k: int
    splits: int
    warps: int
    stages: int


def launch_for(rows: int, outputs: int, columns: int, group: int) -> Launch:
    """The launch for x [rows, columns] and a weight [outputs, columns]. A block of columns lies in one group where the
    group is a multiple of 32."""
    block_k = next((size for size in (128, 64, 32) if group % size == 0), 64)
    if rows > 64:
        return Launch(128, 128, min(block_k, 64), 1, 8, 3)
    block_m = next(size for size in (16, 32, 64) if rows <= size)
    block_n = 64 if block_m < 64 else 128
    programs, blocks = -(-rows // block_m) * -(-outputs // block_n), -(-columns // block_k)
    splits = max(1, min(PROGRAMS // programs, blocks // 4, 8)) if rows <= 16 else 1
    return Launch(block_m, block_n, block_k, splits, 4, 4)


@triton.jit
def _product(
    x, codes, scales, zeros, minimums, super_scales, super_minimums, bias, out,
    rows, outputs, columns, group, x_row, blocks,
    bits: tl.constexpr, has_minimum: tl.constexpr, super_size: tl.constexpr, has_bias: tl.constexpr,
    one_group: tl.constexpr, widen: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of outputs, blocks of rows, splits). `out` is [rows, outputs], or float32 [splits, rows, outputs]
    where K is split; a split takes `blocks` blocks of columns. `super_size`: columns of a super-block, or 0."""
    m = tl.program_id(1) * block_m + tl.arange(0, block_m)
    n = tl.program_id(0) * block_n + tl.arange(0, block_n)
    split = tl.program_id(2)
    m_in, n_in = m < rows, n < outputs
    # Rows times columns may pass 2^31.
    m_long, n_long = m.to(tl.int64), n.to(tl.int64)
    groups = columns // group
    total = tl.zeros((block_m, block_n), dtype=tl.float32)
    for block in range(split * blocks, tl.minimum((split + 1) * blocks, tl.cdiv(columns, block_k))):
        k = block * block_k + tl.arange(0, block_k)
        k_in = k < columns
        part = tl.load(x + m_long[:, None] * x_row + k[None, :], mask=m_in[:, None] & k_in[None, :], other=0.0)
        inside = n_in[:, None] & k_in[None, :]
        if bits == 4:
            words = tl.load(codes + n_long[:, None] * (columns // 2) + k[None, :] // 2, mask=inside, other=0)
            code = (words.to(tl.int32) >> (k[None, :] % 2 * 4)) & 15
        else:
            code = tl.load(codes + n_long[:, None] * columns + k[None, :], mask=inside, other=0).to(tl.int32)
        # Both as [outputs, columns], or [outputs, 1] where a block of columns shares them.
        if one_group:
            place = n_long[:, None] * groups + block * block_k // group
            shared = n_in[:, None]
        else:
            place = n_long[:, None] * groups + k[None, :] // group
            shared = inside
        scale = tl.load(scales + place, mask=shared, other=0).to(tl.float32)
        if super_size:
            above = place * group // super_size
            scale *= tl.load(super_scales + above, mask=shared, other=0.0).to(tl.float32)
        if has_minimum:
            least = tl.load(minimums + place, mask=shared, other=0).to(tl.float32)
            if super_size:
                least *= tl.load(super_minimums + above, mask=shared, other=0.0).to(tl.float32)
            weight = (code.to(tl.float32) * scale + least).to(part.dtype)
        else:
            if bits == 4 and super_size:
                code -= 8
            elif bits == 4:
                code -= tl.load(zeros + place, mask=shared, other=0).to(tl.int32)
            weight = (code.to(tl.float32) * scale).to(part.dtype)
        if widen:
            part, weight = part.to(tl.float32), weight.to(tl.float32)
        total = tl.dot(part, tl.trans(weight), total, input_precision="ieee")
    if has_bias:
        total += tl.load(bias + n, mask=n_in, other=0.0).to(tl.float32)[None, :]
    place = (split.to(tl.int64) * rows + m_long[:, None]) * outputs + n_long[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=m_in[:, None] & n_in[None, :])


INTERPRETED = not isinstance(_product, triton.JITFunction)
"""The interpreter's dot takes the bits of bfloat16 for whole numbers: there, both sides are widened first."""


def linear(x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
    """(x [T, K], weight [N, K], bias [N] or None) -> [T, N] in x's dtype; sums in float32."""
    if not isinstance(weight, TorchQuantized):
        return plain_linear(x, weight, bias)
    (rows, columns), outputs = x.shape, weight.shape[0]
    if columns != weight.shape[1]:
        raise ValueError(f"x has {columns} columns, the weight takes {weight.shape[1]}")
    if not rows:
        return x.new_empty(0, outputs)
    x = x if x.stride(1) == 1 else x.contiguous()
    group = columns // weight.scales.shape[1]
    launch = launch_for(rows, outputs, columns, group)
    blocks = -(-columns // launch.block_k)
    split = launch.splits > 1
    out = x.new_empty(
        (launch.splits, rows, outputs) if split else (rows, outputs), dtype=torch.float32 if split else x.dtype
    )
    zeros = weight.codes if weight.zeros is None else weight.zeros
    minimums = weight.scales if weight.minimums is None else weight.minimums
    super_scales = weight.scales if weight.super_scales is None else weight.super_scales
    super_minimums = weight.scales if weight.super_minimums is None else weight.super_minimums
    grid = (triton.cdiv(outputs, launch.block_n), triton.cdiv(rows, launch.block_m), launch.splits)
    _product[grid](
        x, weight.codes, weight.scales, zeros, minimums, super_scales, super_minimums, x if bias is None else bias, out,
        rows, outputs, columns, group, x.stride(0), -(-blocks // launch.splits),
        bits=weight.bits, has_minimum=weight.minimums is not None,
        super_size=0 if weight.super_scales is None else SUPER, has_bias=bias is not None and not split,
        one_group=group % launch.block_k == 0,
        widen=INTERPRETED and x.dtype is torch.bfloat16,
        block_m=launch.block_m, block_n=launch.block_n, block_k=launch.block_k,
        num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip
    if not split:
        return out
    total = out.sum(0)
    return (total if bias is None else total.add_(bias)).to(x.dtype)


def triton_kernels(device: torch.device | str, dtype: torch.dtype) -> Kernels:
    """The plain table with these products in place of its own for quantized weights."""
    return dataclasses.replace(
        torch_kernels(device, dtype), name="torch, triton", linear=linear,
        varies="a GPU's kernels sum in an order that depends on the number of rows",
    )  # fmt: skip
