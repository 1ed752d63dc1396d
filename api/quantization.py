"""How a checkpoint's linear weights are quantized, from `quantization_config` in its config.json.

Read are AutoAWQ's `gemm`, compressed-tensors' `pack-quantized` and GPTQ of both layouts; everything else is refused
by name, since guessing a layout would give fluent nonsense. Embedding and head are never quantized.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from plimsoll.api.config_values import short
from plimsoll.api.errors import CheckpointError

QuantizedFormat = Literal["awq", "compressed-tensors", "gptq"]

#: The dtype names of quantized weights in `ModelFacts.tensors`, by bits.
DTYPE_OF_BITS: Mapping[int, str] = {4: "W4", 8: "W8"}
#: The precision that serves a quantized checkpoint as it is, by bits.
PRECISION_OF_BITS: Mapping[int, Literal["w4a16", "w8a16"]] = {4: "w4a16", 8: "w8a16"}

#: Columns that kernels unpack at once: groups begin and end on such bounds.
GROUP_STEP = 16
#: Beyond any row of a published model.
_LARGEST_GROUP = 1 << 20
#: Modules that a configuration may list as kept whole; a hostile one must not cost memory.
_MOST_IGNORED = 1 << 14
_OTHER_FORMATS = "Serve the unquantized checkpoint, or quantize it: plimsoll quantize"


@dataclass(frozen=True)
class Quantization:
    """Linear weights as w = (q - z) * s, in groups along the columns (input features) of a row."""

    format: QuantizedFormat
    bits: Literal[4, 8]
    group_size: int
    """Columns that share a scale; 0 is one scale a row."""
    symmetric: bool
    """Zero points are all the middle code (8 of 4 bits, 128 of 8)."""
    ignored: tuple[str, ...] = ()
    """Modules kept whole, as the configuration lists them: names, parts of names, or `re:` patterns. A checkpoint's
    headers say for certain which these are."""
    zero_offset: Literal[0, 1] = 0
    """What is added to a stored zero point: GPTQ's first layout stores z - 1."""

    def groups(self, columns: int) -> int:
        """Scales of a row of `columns`."""
        return columns // self.group_size if self.group_size else 1


def parse_quantization(config: Mapping[str, Any]) -> Quantization | None:
    """What `config` (a config.json) says of quantization; None for a checkpoint of floats.

    Raises:
        CheckpointError: a method, layout or option that is not read, or one that makes no sense; field, value and fix
            are named.
    """
    for key in ("quantization_config", "compression_config"):
        given = config.get(key)
        if given is None:
            continue
        if not isinstance(given, Mapping):
            raise CheckpointError("must be an object", field=key, value=short(given), fix=_OTHER_FORMATS)
        return _Parser(given, key).parse()
    return None


def ignores(pattern: str, module: str) -> bool:
    """Whether an entry of `Quantization.ignored` names `module`: a part of its name, or `re:` and an expression that
    its beginning matches."""
    if not pattern.startswith("re:"):
        return pattern in module
    try:
        return re.match(pattern[3:], module) is not None
    except (re.error, OverflowError, RecursionError):
        return False


def essential(given: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a `quantization_config` that `parse_quantization` reads; the same comes of it."""
    return {key: value for key, value in given.items() if key in _READ and value is not None}


#: Every key that is read.
_READ = (
    "quant_method", "bits", "w_bit", "group_size", "q_group_size", "zero_point", "version", "modules_to_not_convert",
    "backend", "checkpoint_format", "desc_act", "sym", "dynamic", "is_marlin_format", "lm_head", "pack_dtype", "format",
    "config_groups", "ignore", "sparsity_config", "transform_config", "kv_cache_scheme",
)  # fmt: skip


class _Parser:
    def __init__(self, given: Mapping[str, Any], where: str) -> None:
        self.given = given
        self.where = where

    def parse(self) -> Quantization:
        method = self.given.get("quant_method")
        if method is None and "config_groups" in self.given:
            method = "compressed-tensors"
        if method == "awq":
            return self._awq()
        if method == "gptq":
            return self._gptq()
        if method == "compressed-tensors":
            return self._compressed()
        raise self._refusal("quant_method", method, "is no quantization that is served; awq, compressed-tensors and "
                            "gptq are")  # fmt: skip

    def _awq(self) -> Quantization:
        self._refuse_packed_otherwise()
        bits = self._bits("bits", self.given.get("bits", self.given.get("w_bit")), (4,))
        layout = self.given.get("version", self.given.get("checkpoint_format", "gemm"))
        if not isinstance(layout, str) or layout.lower() != "gemm":
            raise self._refusal(
                "version", layout, "only AutoAWQ's gemm layout is read", "Convert it to gemm, or quantize it again"
            )
        if self.given.get("backend") == "llm-awq":
            raise self._refusal(
                "backend", "llm-awq", "only AutoAWQ's gemm layout is read", "Convert it to gemm, or quantize it again"
            )
        if self.given.get("zero_point", True) is not True:
            raise self._refusal(
                "zero_point", self.given["zero_point"], "the gemm layout has zero points; without them there is no "
                "layout that others read", "Quantize it with zero_point true",
            )  # fmt: skip
        group = self._group("group_size", self.given.get("group_size", self.given.get("q_group_size", 128)))
        return Quantization("awq", bits, group, False, self._names("modules_to_not_convert"))

    def _gptq(self) -> Quantization:
        self._refuse_packed_otherwise()
        bits = self._bits("bits", self.given.get("bits"), (4, 8))
        layout = self.given.get("checkpoint_format", self.given.get("format", "gptq"))
        if layout not in ("gptq", "gptq_v2") or self.given.get("is_marlin_format"):
            raise self._refusal(
                "checkpoint_format", layout if layout not in ("gptq", "gptq_v2") else "marlin",
                "only gptq and gptq_v2 are read", "Convert it to gptq, or quantize it again",
            )  # fmt: skip
        group = self._group("group_size", self.given.get("group_size", -1))
        # With one scale a row every column is of group 0, for any order of quantization.
        if self.given.get("desc_act") and group:
            raise self._refusal(
                "desc_act", self.given["desc_act"],
                "columns of a group lie scattered over the row, which would need an index at every product",
                "Quantize it with desc_act false, or take a checkpoint that was",
            )  # fmt: skip
        skipped = self._skipped()
        symmetric = self._symmetric("sym", self.given, bits)
        return Quantization("gptq", bits, group, symmetric, skipped, zero_offset=1 if layout == "gptq" else 0)

    def _skipped(self) -> tuple[str, ...]:
        """GPTQModel's `dynamic`: `-:` and a regular expression keeps modules whole, as `re:` patterns here. What gives
        modules settings of their own must repeat the common ones."""
        dynamic = self.given.get("dynamic") or {}
        if not isinstance(dynamic, Mapping) or len(dynamic) > _MOST_IGNORED:
            raise self._refusal("dynamic", dynamic, "must be an object from patterns to settings")
        found = []
        for pattern, changes in dynamic.items():
            if isinstance(pattern, str) and pattern.startswith("-:"):
                try:
                    re.compile(pattern[2:])
                except (re.error, OverflowError, RecursionError) as error:
                    raise self._refusal("dynamic", pattern, f"is no regular expression: {error}") from None
                found.append(f"re:{pattern[2:]}")
            elif not isinstance(changes, Mapping) or any(self.given.get(key) != new for key, new in changes.items()):
                raise self._refusal(
                    "dynamic", {pattern: changes}, "modules of several precisions are not read",
                    "Quantize all modules alike; modules that are left whole (-:PATTERN) are read",
                )  # fmt: skip
        return tuple(found)

    def _compressed(self) -> Quantization:
        for key, why in (
            ("transform_config", "rotated weights need the rotation at every product"),
            ("kv_cache_scheme", "a cache quantized by scales of the checkpoint is not run"),
        ):
            if self.given.get(key):
                raise self._refusal(key, self.given[key], why)
        sparsity = self.given.get("sparsity_config")
        if sparsity and not (isinstance(sparsity, Mapping) and sparsity.get("format", "dense") == "dense"):
            raise self._refusal("sparsity_config", sparsity, "sparse weights are not read")
        groups = self.given.get("config_groups")
        if not isinstance(groups, Mapping) or not groups:
            raise self._refusal("config_groups", groups, "must name at least one group of modules")
        found = {self._scheme(f"config_groups.{name}", group) for name, group in groups.items()}
        if len(found) > 1:
            raise self._refusal(
                "config_groups", list(groups), "modules of several precisions are not read",
                "Quantize all modules by one scheme",
            )  # fmt: skip
        bits, group, symmetric = found.pop()
        return Quantization("compressed-tensors", bits, group, symmetric, self._names("ignore"))

    def _scheme(self, name: str, group: object) -> tuple[Literal[4, 8], int, bool]:
        """(bits, group size, symmetric) of one entry of `config_groups`."""
        if not isinstance(group, Mapping) or not isinstance(group.get("weights"), Mapping):
            raise self._refusal(f"{name}.weights", None, "must say how weights are quantized")
        layout = group.get("format") or self.given.get("format")
        if layout != "pack-quantized":
            raise self._refusal(f"{name}.format" if group.get("format") else "format", layout,
                                "only pack-quantized is read")  # fmt: skip
        for key in ("input_activations", "output_activations"):
            if group.get(key):
                raise self._refusal(
                    f"{name}.{key}", group[key], "activations are not quantized here", "Quantize weights alone (W4A16)"
                )
        weights = group["weights"]
        bits = self._bits(f"{name}.weights.num_bits", weights.get("num_bits"), (4, 8))
        if weights.get("type", "int") != "int":
            raise self._refusal(f"{name}.weights.type", weights["type"], "only int is read")
        if weights.get("dynamic"):
            raise self._refusal(f"{name}.weights.dynamic", weights["dynamic"], "weights' scales must be stored")
        if weights.get("actorder") == "group" or weights.get("actorder") is True:
            raise self._refusal(
                f"{name}.weights.actorder", weights["actorder"],
                "columns of a group lie scattered over the row, which would need an index at every product",
                "Quantize it with actorder weight or static",
            )  # fmt: skip
        symmetric = self._symmetric("symmetric", weights, bits, f"{name}.weights.")
        size = weights.get("group_size")
        strategy = weights.get("strategy") or ("group" if size not in (None, -1) else "channel")
        if strategy not in ("group", "channel"):
            raise self._refusal(f"{name}.weights.strategy", strategy, "only group and channel are read")
        if strategy == "channel":
            return bits, 0, symmetric
        return bits, self._group(f"{name}.weights.group_size", size), symmetric

    def _refuse_packed_otherwise(self) -> None:
        if head := self.given.get("lm_head"):
            raise self._refusal("lm_head", head, "a quantized head is not read", "Leave the head whole")
        if self.given.get("pack_dtype", "int32") != "int32":
            raise self._refusal("pack_dtype", self.given["pack_dtype"], "only words of int32 are read")

    def _symmetric(self, key: str, given: Mapping[str, Any], bits: int, place: str = "") -> bool:
        found = given.get(key, True)
        if not isinstance(found, bool):
            raise self._refusal(place + key, found, "must be true or false", "Use the config.json that came with it")
        if bits == 8 and not found:
            what = "8-bit weights are read without zero points"
            raise self._refusal(place + key, False, what, f"Quantize it with {key} true")
        return found

    def _bits(self, field: str, value: object, known: tuple[int, ...]) -> Literal[4, 8]:
        if isinstance(value, bool) or not isinstance(value, int) or value not in known:
            raise self._refusal(field, value, f"only {' and '.join(map(str, known))} bits are read")
        return cast(Literal[4, 8], value)

    def _group(self, field: str, value: object) -> int:
        if value == -1 and not isinstance(value, bool):
            return 0
        if (
            isinstance(value, bool)
            or not isinstance(value, int)
            or not 0 < value <= _LARGEST_GROUP
            or value % GROUP_STEP
        ):
            raise self._refusal(
                field, value, f"must be a multiple of {GROUP_STEP}, or -1 for one scale a row", "Use 32, 64 or 128"
            )
        return value

    def _names(self, field: str) -> tuple[str, ...]:
        given = self.given.get(field)
        names = () if given is None else given
        if (
            isinstance(names, str)
            or not isinstance(names, Iterable)
            or isinstance(names, Mapping)
            or len(names := tuple(names)) > _MOST_IGNORED
            or not all(isinstance(name, str) for name in names)
        ):
            raise self._refusal(field, given, "must be a list of module names")
        return cast(tuple[str, ...], names)

    def _refusal(self, field: str, value: object, message: str, fix: str = _OTHER_FORMATS) -> CheckpointError:
        return CheckpointError(message, field=f"{self.where}.{field}", value=short(value), fix=fix)
