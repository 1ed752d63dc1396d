"""The formats by name, and what a quantized checkpoint's config.json says of them."""

from typing import Any, Literal

from plimsoll.api.quantization import Quantization
from plimsoll.checkpoint.checkpoint import RawTensor
from plimsoll.checkpoint.quantized.awq import AwqLayout
from plimsoll.checkpoint.quantized.compressed import CompressedLayout
from plimsoll.checkpoint.quantized.gptq import GptqLayout
from plimsoll.checkpoint.quantized.layout import Layout
from plimsoll.checkpoint.quantized.linear import QuantizedLinear

#: What `plimsoll quantize` writes.
WrittenFormat = Literal["awq", "compressed-tensors"]


def layout_of(quantization: Quantization) -> Layout:
    """How the checkpoint that says `quantization` lies on disk."""
    if quantization.format == "awq":
        return AwqLayout()
    if quantization.format == "compressed-tensors":
        return CompressedLayout()
    return GptqLayout(quantization.zero_offset)


def packed_tensors(format: WrittenFormat, module: str, linear: QuantizedLinear) -> dict[str, RawTensor]:
    """Every tensor that `format` stores of `module` (`model.layers.0.mlp.down_proj`) besides its bias, by full name.

    Raises:
        CheckpointError: the format cannot hold this shape or these scales.
    """
    layout = AwqLayout() if format == "awq" else CompressedLayout()
    return {f"{module}.{suffix}": raw for suffix, raw in layout.pack(linear, module).items()}


def quantization_config(quantization: Quantization) -> dict[str, Any]:
    """What config.json holds under `quantization_config` of a format that is written.

    `parse_quantization` gives `quantization` back.
    """
    bits, group = quantization.bits, quantization.group_size or -1
    if quantization.format == "awq":
        return {
            "quant_method": "awq", "bits": bits, "group_size": group, "zero_point": True, "version": "gemm",
            "modules_to_not_convert": list(quantization.ignored) or None,
        }  # fmt: skip
    weights: dict[str, Any] = {
        "num_bits": bits, "type": "int", "symmetric": quantization.symmetric, "dynamic": False, "actorder": None,
        "strategy": "group" if quantization.group_size else "channel",
        "group_size": quantization.group_size or None, "block_structure": None, "observer": "minmax",
        "observer_kwargs": {},
    }  # fmt: skip
    # TurboMind knows the group by this name alone.
    group_0 = {
        "targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None,
        "format": "pack-quantized",
    }  # fmt: skip
    return {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
        "config_groups": {"group_0": group_0}, "ignore": list(quantization.ignored), "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }  # fmt: skip
