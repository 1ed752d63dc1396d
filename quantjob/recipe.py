"""The settings of a quantization: everything that decides the bytes of the output, besides weights and tokens."""

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from plimsoll.api.choice import check_choice
from plimsoll.api.errors import SpecError

Method = Literal["awq", "rtn", "int8"]
Format = Literal["awq", "compressed-tensors"]

METHODS: tuple[str, ...] = get_args(Method)
FORMATS: tuple[str, ...] = get_args(Format)
GROUP_SIZES = (32, 64, 128)


@dataclass(frozen=True)
class Recipe:
    """How weights become codes.

    Attributes:
        method: `awq` searches scales and ranges on activations, `rtn` rounds to nearest, `int8` rounds each row to 8
            bits about zero.
        bits: 4, or 8 for `int8`.
        group_size: columns that share a scale; 0, one scale a row, for `int8`.
        format: how they are written.
        search_scale: awq: look for scales of input channels; without it only ranges are searched.
        clip: awq: look for narrower ranges.
        compensate: awq: let each column make up for the rounding of those before it.
        seed: of all random choices: the calibration windows.
    """

    method: Method = "awq"
    bits: Literal[4, 8] = 4
    group_size: int = 128
    format: Format = "awq"
    search_scale: bool = True
    clip: bool = True
    compensate: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises SpecError naming the option."""
        check_choice(self.method, METHODS, "--method")
        check_choice(self.format, FORMATS, "--format")
        if self.seed < 0:
            raise SpecError("must be 0 or more", field="--seed", value=self.seed)
        if self.method == "int8":
            self._check_int8()
        elif self.bits != 4:
            raise SpecError(
                f"{self.method} writes 4 bits", field="--w-bits", value=self.bits, fix="Use 4, or --method int8"
            )
        else:
            check_choice(self.group_size, GROUP_SIZES, "--w-group-size")

    def _check_int8(self) -> None:
        if self.bits != 8:
            raise SpecError("int8 writes 8 bits", field="--w-bits", value=self.bits, fix="Use 8, or --method awq")
        if self.group_size != 0:
            raise SpecError(
                "int8 has one scale a row", field="--w-group-size", value=self.group_size, fix="Leave it out, or use 0"
            )
        if self.format != "compressed-tensors":
            raise SpecError(
                "holds 4 bits only", field="--format", value=self.format, fix="Use compressed-tensors with int8"
            )

    @property
    def calibrates(self) -> bool:
        """Whether the weights written depend on the calibration text."""
        return self.method == "awq" and (self.search_scale or self.clip or self.compensate)

    def described(self) -> dict[str, Any]:
        """As JSON, in a fixed order."""
        return dict(sorted(asdict(self).items()))

    def encoded(self) -> str:
        """One text for one recipe, for fingerprints."""
        return json.dumps(self.described(), separators=(",", ":"))
