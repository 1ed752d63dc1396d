"""Kernel tables that run here, so that every test of an op or a model holds for each of them."""

import torch

from plimsoll.runtime.kernels.selection import select
from plimsoll.runtime.kernels.table import Kernels
from plimsoll.runtime.kernels.torch_ops import torch_kernels

CPU = torch.device("cpu")


def float32_tables() -> list[Kernels]:
    """Plain torch, and the table this machine would choose if that is another one; float32 throughout."""
    chosen = select(CPU, torch.float32)
    return [torch_kernels(CPU, torch.float32)] + ([chosen] if chosen.name != "torch" else [])


def bfloat16_tables() -> list[Kernels]:
    """The same for bfloat16 weights and cache; activations are as wide as each table has them."""
    chosen = select(CPU, torch.bfloat16)
    return [torch_kernels(CPU, torch.bfloat16)] + ([chosen] if chosen.name != "torch" else [])


def table_name(kernels: Kernels) -> str:
    return f"{kernels.name}-{str(kernels.dtype).removeprefix('torch.')}"
