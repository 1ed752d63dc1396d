"""From the tensors a quantized checkpoint stores to the weights they mean, by headers alone."""

from collections.abc import Mapping
from dataclasses import dataclass

from plimsoll.api.errors import CheckpointError
from plimsoll.api.model import TensorFact
from plimsoll.api.quantization import DTYPE_OF_BITS, GROUP_STEP, Quantization
from plimsoll.checkpoint.quantized.formats import layout_of
from plimsoll.checkpoint.quantized.layout import Layout

_DAMAGED = "Download the checkpoint again, or use the config.json that came with it"
#: What holds codes in the formats that are read.
_CODES = (".qweight", ".weight_packed")


@dataclass(frozen=True)
class Logical:
    """The weights as the model names them: those of quantized linears beside what is stored whole."""

    tensors: Mapping[str, TensorFact]
    """By Hugging Face's float names, in file order; a quantized one has the dtype W4 or W8 and the bytes stored."""
    modules: Mapping[str, tuple[str, ...]]
    """Quantized modules, with the suffixes of what each stores."""


def logical_tensors(stored: Mapping[str, TensorFact], quantization: Quantization | None, where: str) -> Logical:
    """Every quantized linear's tensors checked against each other and put in the place of its weight.

    Raises:
        CheckpointError: a tensor is missing, of another shape or dtype, or there where it should not be; groups do not
            divide the row. The message names the tensor.
    """
    if quantization is None:
        found = next((name for name in stored if name.endswith(_CODES)), None)
        if found is not None:
            raise CheckpointError(
                "holds quantized weights, and its config.json has no quantization_config",
                field=where, value=found[:200], fix="Put it there; some exporters keep it in quantize_config.json",
            )  # fmt: skip
        return Logical(stored, {})
    layout = layout_of(quantization)
    ending = f".{layout.codes}"
    names = {name[: -len(ending)] for name in stored if name.endswith(ending)}
    if not names:
        raise CheckpointError(
            f"says {quantization.format}, and no module has a {layout.codes}", field=f"{where}: quantization_config",
            fix="Use the config.json that came with these weights",
        )  # fmt: skip
    _check_scales(stored, names, layout, where)
    tensors: dict[str, TensorFact] = {}
    modules: dict[str, tuple[str, ...]] = {}
    for name, fact in stored.items():
        module, _, suffix = name.rpartition(".")
        if suffix not in layout.suffixes:
            tensors[name] = fact
        elif module not in names:
            raise CheckpointError(f"is there without its {layout.codes}", field=f"{where}: {name[:200]}", fix=_DAMAGED)
        elif module not in modules:
            weight, modules[module] = _linear(module, stored, quantization, layout, where)
            tensors[weight.name] = weight
    return Logical(tensors, modules)


def _check_scales(stored: Mapping[str, TensorFact], modules: set[str], layout: Layout, where: str) -> None:
    """One dtype throughout: matrices that are fused share a tensor of scales."""
    suffix = next(name for name in layout.suffixes if "scale" in name)
    kinds = {stored[name].dtype: name for module in sorted(modules) if (name := f"{module}.{suffix}") in stored}
    if len(kinds) > 1:
        raise CheckpointError(
            "scales are of several dtypes", field=where, value={name[:200]: dtype for dtype, name in kinds.items()},
            fix="Save it in one precision",
        )  # fmt: skip


def _linear(
    module: str, stored: Mapping[str, TensorFact], quantization: Quantization, layout: Layout, where: str
) -> tuple[TensorFact, tuple[str, ...]]:
    """(the weight of `module`, the suffixes of what it stores)."""
    at = f"{where}: {module[:200]}"
    if f"{module}.weight" in stored:
        raise CheckpointError("is stored whole and quantized", field=f"{at}.weight", fix=_DAMAGED)
    codes = stored[f"{module}.{layout.codes}"]
    if len(codes.shape) != 2 or 0 in codes.shape:
        raise CheckpointError(
            "must have two dimensions", field=f"{at}.{layout.codes}", value=list(codes.shape), fix=_DAMAGED
        )
    rows, columns = layout.shape(codes.shape, quantization.bits)
    size = quantization.group_size or GROUP_STEP
    if columns % size:
        what = f"groups of {size} do not divide" if quantization.group_size else f"{size} columns at once do not divide"
        raise CheckpointError(f"{what} its {columns} input features", field=at, value=columns, fix=_DAMAGED)
    parts = layout.parts(rows, columns, quantization)
    found = tuple(suffix for suffix in layout.suffixes if f"{module}.{suffix}" in stored)
    for suffix in found:
        if suffix not in parts:
            raise CheckpointError("is there, and the weights are symmetric", field=f"{at}.{suffix}", fix=_DAMAGED)
    for suffix, part in parts.items():
        if suffix not in found:
            if part.optional:
                continue
            raise CheckpointError("is missing", field=f"{at}.{suffix}", fix=_DAMAGED)
        fact = stored[f"{module}.{suffix}"]
        if fact.shape != part.shape or fact.dtype not in part.dtypes:
            raise CheckpointError(
                f"a weight of [{rows}, {columns}] in groups of {columns // quantization.groups(columns)} has "
                f"{' or '.join(part.dtypes)} {list(part.shape)} here",
                field=f"{at}.{suffix}", value=f"{fact.dtype} {list(fact.shape)}", fix=_DAMAGED,
            )  # fmt: skip
    nbytes = sum(stored[f"{module}.{suffix}"].nbytes for suffix in found)
    return TensorFact(f"{module}.weight", (rows, columns), DTYPE_OF_BITS[quantization.bits], nbytes), found
