"""The quantized weight of one linear layer, for every format that stores one."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

ScaleDtype = Literal["F16", "BF16", "F32"]

#: What is added to signed codes to make them unsigned, by bits; also a symmetric weight's zero point.
MIDDLE: Mapping[int, int] = {4: 8, 8: 128}


@dataclass(frozen=True)
class QuantizedLinear:
    """w[n, k] = (codes[n, k] - zeros[n, k // g]) * scales[n, k // g] with g = K / G columns in a group; with minimums
    codes * scales + minimums. In GGUF's super-blocks scales and minimums are int8, and super_scales and super_minimums,
    of 256 columns each, multiply them.

    4 bits: codes 0 to 15. 8 bits: codes -128 to 127, without zero points.
    """

    codes: npt.NDArray[Any]
    """uint8 [N, K] of 4 bits, int8 [N, K] of 8."""
    scales: npt.NDArray[Any]
    """[N, G] float32, each exactly a value of `scale_dtype`; int8 in super-blocks."""
    zeros: npt.NDArray[np.uint8] | None = None
    """[N, G], 0 to 15; None is 8 throughout."""
    scale_dtype: ScaleDtype = "F16"
    minimums: npt.NDArray[Any] | None = None
    """float16 [N, G] in place of zeros, with scales of float16; int8 in super-blocks."""
    super_scales: npt.NDArray[np.float16] | None = None
    """[N, K / 256]; None where there are no super-blocks."""
    super_minimums: npt.NDArray[np.float16] | None = None
    """[N, K / 256], where super-blocks have minimums."""

    @property
    def bits(self) -> Literal[4, 8]:
        return 4 if self.codes.dtype == np.uint8 else 8

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return int(self.codes.shape[0]), int(self.codes.shape[1])

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return self.shape[1] // int(self.scales.shape[1])

    def unsigned(self) -> npt.NDArray[np.uint8]:
        """Codes as stored: of 8 bits with the middle added."""
        return self.codes if self.bits == 4 else self.codes.view(np.uint8) ^ np.uint8(MIDDLE[8])

    def rows(self, start: int, stop: int) -> "QuantizedLinear":
        """Rows [start, stop), as views."""
        parts: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        parts |= {name: part[start:stop] for name, part in parts.items() if isinstance(part, np.ndarray)}
        return QuantizedLinear(**parts)

    def dequantize(self) -> npt.NDArray[np.float32]:
        """w in float32, [N, K]: the difference is exact, the product rounded once."""
        rows, columns = self.shape
        values = self.codes.reshape(rows, self.scales.shape[1], self.group).astype(np.float32)
        scales = _of_groups(self.scales, self.super_scales)
        if self.minimums is not None:
            values *= scales
            values += _of_groups(self.minimums, self.super_minimums)
            return values.reshape(rows, columns)
        if self.zeros is not None:
            values -= self.zeros[:, :, None]
        elif self.bits == 4:
            values -= MIDDLE[4]
        values *= scales
        return values.reshape(rows, columns)


def _of_groups(values: npt.NDArray[Any], factors: npt.NDArray[np.float16] | None) -> npt.NDArray[np.float32]:
    """Scales or minimums as [N, G, 1]. With factors a product of 11 and 8 bits, which is exact."""
    wide = values.astype(np.float32)
    if factors is not None:
        wide *= np.repeat(factors.astype(np.float32), values.shape[1] // factors.shape[1], axis=1)
    return wide[:, :, None]
