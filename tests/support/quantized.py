"""Tiny quantized checkpoints of every format, rounded to nearest, beside the floats they stand for."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from plimsoll.api.quantization import Quantization
from plimsoll.checkpoint.checkpoint import RawTensor
from plimsoll.checkpoint.quantized import words
from plimsoll.checkpoint.quantized.formats import packed_tensors, quantization_config
from plimsoll.checkpoint.quantized.linear import MIDDLE, QuantizedLinear
from plimsoll.checkpoint.quantized.values import store_scales, stored
from tests.support.checkpoints import make_checkpoint

AWQ = Quantization("awq", 4, 32, False)
COMPRESSED = Quantization("compressed-tensors", 4, 32, False, ("lm_head",))
COMPRESSED_SYMMETRIC = Quantization("compressed-tensors", 4, 32, True, ("lm_head",))
COMPRESSED_8 = Quantization("compressed-tensors", 8, 0, True, ("lm_head",))
COMPRESSED_8_GROUPS = Quantization("compressed-tensors", 8, 32, True, ("lm_head",))
GPTQ = Quantization("gptq", 4, 32, True, zero_offset=1)
GPTQ_V2 = Quantization("gptq", 4, 32, False)
GPTQ_8 = Quantization("gptq", 8, 0, True, zero_offset=1)
ALL = {
    "awq": AWQ, "ct": COMPRESSED, "ct-symmetric": COMPRESSED_SYMMETRIC, "ct-8": COMPRESSED_8,
    "ct-8-groups": COMPRESSED_8_GROUPS, "gptq": GPTQ, "gptq-v2": GPTQ_V2, "gptq-8": GPTQ_8,
}  # fmt: skip

#: As tables that hold heads in 8 bits round them.
HEAD = Quantization("compressed-tensors", 8, 32, True)
#: Linear layers of Llama's and of InternLM2's spelling.
LINEARS = ("_proj", ".wqkv", ".wo", ".w1", ".w2", ".w3")


def round_to_nearest(weight: Any, said: Quantization) -> QuantizedLinear:
    """(float32 [N, K]) -> codes about the range of each group, or about zero where symmetric; scales of F16."""
    rows, columns = weight.shape
    groups = weight.reshape(rows, said.groups(columns), -1).astype(np.float32)
    if said.symmetric:
        most = (1 << (said.bits - 1)) - 1
        scales = (np.abs(groups).max(2) / most).astype(np.float16).astype(np.float32)
        codes = np.clip(np.round(groups / scales[:, :, None]), -most - 1, most)
        if said.bits == 8:
            return QuantizedLinear(codes.astype(np.int8).reshape(rows, columns), scales)
        return QuantizedLinear((codes + 8).astype(np.uint8).reshape(rows, columns), scales)
    low, high = np.minimum(groups.min(2), 0), np.maximum(groups.max(2), 0)
    scales = ((high - low) / 15).astype(np.float16).astype(np.float32)
    zeros = np.clip(np.round(-low / scales), 0, 15)
    codes = np.clip(np.round(groups / scales[:, :, None]) + zeros[:, :, None], 0, 15)
    return QuantizedLinear(codes.astype(np.uint8).reshape(rows, columns), scales, zeros.astype(np.uint8))


def pack(said: Quantization, linear: QuantizedLinear, module: str) -> dict[str, RawTensor]:
    """What the format stores of a linear, by suffix. Plimsoll reads GPTQ and does not write it."""
    if said.format != "gptq":
        return {name.rpartition(".")[2]: raw for name, raw in packed_tensors(said.format, module, linear).items()}
    columns, bits = linear.shape[1], linear.bits
    zeros = linear.zeros
    if zeros is None:
        zeros = np.full(linear.scales.shape, MIDDLE[bits], dtype=np.uint8)
    zeros = np.asarray((zeros - np.uint8(said.zero_offset)) & ((1 << bits) - 1), dtype=np.uint8)
    return {
        "qweight": stored("I32", words.pack(np.ascontiguousarray(linear.unsigned().T).T, bits).T),
        "qzeros": stored("I32", words.pack(zeros.T, bits)),
        "scales": store_scales(np.ascontiguousarray(linear.scales.T), linear.scale_dtype, bits, f"{module}.scales"),
        "g_idx": stored("I32", np.arange(columns, dtype=np.int32) // linear.group),
    }


def described(said: Quantization) -> dict[str, Any]:
    """`quantization_config` as the format's exporters write it."""
    if said.format != "gptq":
        return quantization_config(said)
    return {
        "quant_method": "gptq", "bits": said.bits, "group_size": said.group_size or -1, "desc_act": False,
        "sym": said.symmetric, "checkpoint_format": "gptq" if said.zero_offset else "gptq_v2",
    }  # fmt: skip


def quantize_folder(source: Path, folder: Path, said: Quantization, whole: tuple[str, ...] = ()) -> tuple[Path, Path]:
    """`source` with its linears stored as `said` describes, except modules with a part of `whole` in their names.

    The head stays whole, of values that 8 bits hold exactly.

    Returns:
        The quantized folder, and a float32 one of the values it stands for.
    """
    from safetensors.numpy import load_file, save_file

    tensors: dict[str, Any] = {}
    for file in source.glob("*.safetensors"):
        tensors |= load_file(file)
    packed, floats = {}, {}
    heads = {name.removesuffix(".weight") for name in tensors} & {"lm_head", "output"}
    head = next(iter(heads), "model.embed_tokens")
    for name, value in tensors.items():
        module = name.removesuffix(".weight")
        if module == head:
            value = round_to_nearest(value, HEAD).dequantize()
        if module == name or not module.endswith(LINEARS) or any(part in module for part in whole):
            packed[name] = floats[name] = value
            continue
        linear = round_to_nearest(value, said)
        floats[name] = linear.dequantize()
        packed |= {f"{module}.{suffix}": raw.data for suffix, raw in pack(said, linear, module).items()}
    twin = folder.with_name(folder.name + "-floats")
    for where, values in ((folder, packed), (twin, floats)):
        shutil.copytree(source, where, ignore=shutil.ignore_patterns("*.safetensors*"))
        save_file({name: np.ascontiguousarray(value) for name, value in values.items()}, where / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": described(said)}))
    return folder, twin


def make_quantized(
    folder: Path, said: Quantization, architecture: str = "LlamaForCausalLM", *, whole: tuple[str, ...] = (),
    **overrides: Any,
) -> tuple[Path, Path]:  # fmt: skip
    """`make_checkpoint` in float32, quantized: (its folder, the folder of the floats it stands for)."""
    source = make_checkpoint(folder.with_name(folder.name + "-source"), architecture, **overrides)
    return quantize_folder(source, folder, said, whole)
