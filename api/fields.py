"""What the fields of a manifest are made of: the strict base, names and amounts, each as Python and as the API server
check it. `json_schema_extra` of a field goes into the CRD as it is; CEL rules stand beside the validator they repeat.
"""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic.alias_generators import to_camel

from plimsoll.api.quantity import parse_bytes, parse_cpus, parse_seconds

#: What the CRD leaves out: it only works on the machine that the manifest lies on.
LAPTOP_ONLY = "x-plimsoll-laptop-only"
RULES = "x-kubernetes-validations"
MAX_MEMORY = 1 << 50
MAX_CPUS = 1024
DAY = 86400

_QUANTITY = r"^[0-9]{1,19}(\.[0-9]{1,9})?(m|k|Ki|[MGTPE]i?|[eE][0-9]{1,2})?$"
_DURATION = r"^([0-9]{1,4}h)?([0-9]{1,6}m)?([0-9]{1,8}(\.[0-9]{1,3})?s)?$"
_SUBDOMAIN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
_LABEL_VALUE = r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$"
_LABEL_KEY = re.compile(rf"({_SUBDOMAIN[1:-1]}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?")


class Part(BaseModel):
    """Strict as the API server is: a number in quotes is text, and `yes` is not a number."""

    model_config = ConfigDict(
        alias_generator=to_camel, extra="forbid", frozen=True, strict=True, allow_inf_nan=False,
        use_attribute_docstrings=True,
    )  # fmt: skip

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_the_default(cls, data: Any) -> Any:
        # `context:` with nothing under it; the API server prunes such fields.
        if not isinstance(data, dict):
            return data
        known = {field.alias for field in cls.model_fields.values()}
        return {key: value for key, value in data.items() if value is not None or key not in known}


def rule(expression: str, message: str, field: str | None = None) -> dict[str, str]:
    """A CEL rule of the CRD; `field` is where below it the API server says that the fault is."""
    return {"rule": expression, "message": message} | ({"fieldPath": field} if field else {})


def _quantity_schema(low: str, high: str, most: int, message: str, rounded: int = 1) -> WithJsonSchema:
    within = f"quantity(self).compareTo(quantity('{low}')) > 0 && quantity(self).compareTo(quantity('{high}')) <= 0"
    return WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "pattern": _QUANTITY,
            "maxLength": 32,
            "minimum": rounded,
            "maximum": most,
            # A string that is none is the pattern's to refuse.
            RULES: [rule(f"type(self) == int || !isQuantity(self) || ({within})", message)],
        }
    )


def _spelled(pattern: str, message: str) -> BeforeValidator:
    """Text as the CRD takes it; a number stays a number, for the parser behind this."""
    compiled = re.compile(pattern, re.ASCII)

    def check(value: Any) -> Any:
        if isinstance(value, str) and (not value or not compiled.fullmatch(value)):
            raise ValueError(message)
        return value

    return BeforeValidator(check)


# Validators run from the right: the spelling first, then the amount, then its bounds.
_MEMORY = "must be a quantity such as 24Gi, above 0 and at most 1Pi"
Memory = Annotated[
    int, Field(le=MAX_MEMORY), BeforeValidator(parse_bytes), _spelled(_QUANTITY, _MEMORY),
    _quantity_schema("0", "1Pi", MAX_MEMORY, _MEMORY),
]  # fmt: skip
"""Memory as whole bytes."""
_CPUS = "must be a number of processors such as 2 or 1500m, above 0 and at most 1024"
Processors = Annotated[
    int, Field(le=MAX_CPUS), BeforeValidator(parse_cpus), _spelled(_QUANTITY, _CPUS),
    _quantity_schema("0", "1024", MAX_CPUS, _CPUS),
]  # fmt: skip
"""Processors as whole threads."""


def _duration(low: float, message: str) -> Any:
    bound = f"duration(self) {'>' if low == 0 else '>='} duration('{low:g}s') && duration(self) <= duration('24h')"
    return WithJsonSchema(
        {
            "type": "string",
            "pattern": _DURATION,
            "minLength": 2,
            "maxLength": 24,
            RULES: [rule(f"!self.matches('{_DURATION}') || ({bound})", message)],
        }
    )


_TIME = "must be a duration such as 120s, 2m or 1h30m"
_WAIT, _LIMIT, _DEADLINE = (f"{_TIME}, {bounds}" for bounds in ("at most 24h", "above 0, at most 24h", "1s to 24h"))
Wait = Annotated[
    float, Field(ge=0, le=DAY), BeforeValidator(parse_seconds), _spelled(_DURATION, _TIME),
    WithJsonSchema({"type": "string", "pattern": _DURATION, "minLength": 2, "maxLength": 24, RULES: [
        rule("duration(self) <= duration('24h')", _WAIT)]}),
]  # fmt: skip
"""A time that may be none, as seconds."""
Limit = Annotated[
    float, Field(gt=0, le=DAY), BeforeValidator(parse_seconds), _spelled(_DURATION, _TIME), _duration(0, _LIMIT)
]
"""A time above none, as seconds."""
Deadline = Annotated[
    float, Field(ge=1, le=DAY), BeforeValidator(parse_seconds), _spelled(_DURATION, _TIME), _duration(1, _DEADLINE)
]
"""A time of a second or more, as seconds."""

#: Counts fit the 32-bit integers of the OpenAPI schema they are served under.
Count = Annotated[int, Field(ge=1, le=(1 << 31) - 1)]


def _object_name(value: str) -> str:
    if not re.fullmatch(_SUBDOMAIN, value, re.ASCII) or len(value) > 253:
        raise ValueError("must be the name of an object: lower-case letters, digits, '-' and '.', not at an end")
    return value


ObjectName = Annotated[
    str, AfterValidator(_object_name),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": 253, "pattern": _SUBDOMAIN}),
]  # fmt: skip
"""Of an object in the deployment's namespace."""


def _keys(pairs: dict[str, str]) -> dict[str, str]:
    for key in pairs:
        prefix = key.partition("/")[0] if "/" in key else ""
        if not _LABEL_KEY.fullmatch(key) or len(prefix) > 253:
            raise ValueError(f"{key[:80]!r} is no label's name: letters, digits, '-', '_' and '.', up to 63 of them")
    return pairs


def _not_ours(pairs: dict[str, str]) -> dict[str, str]:
    for key in pairs:
        if key.startswith("plimsoll.dev/") or key in ("app.kubernetes.io/name", "app.kubernetes.io/managed-by"):
            raise ValueError(f"{key[:80]} is written by the operator")
    return pairs


_OURS = rule(
    "self.all(k, !k.startsWith('plimsoll.dev/') && k != 'app.kubernetes.io/name' "
    "&& k != 'app.kubernetes.io/managed-by')",
    "plimsoll.dev/…, app.kubernetes.io/name and app.kubernetes.io/managed-by are written by the operator",
)
LabelValue = Annotated[str, Field(pattern=_LABEL_VALUE, max_length=63)]
NodeLabels = Annotated[dict[str, LabelValue], AfterValidator(_keys), Field(max_length=32)]
"""Labels that a node must have."""
PodLabels = Annotated[
    dict[str, LabelValue], AfterValidator(_keys), AfterValidator(_not_ours),
    Field(max_length=32, json_schema_extra={RULES: [_OURS]}),
]  # fmt: skip
PodAnnotations = Annotated[
    dict[str, Annotated[str, Field(max_length=16384)]], AfterValidator(_keys), AfterValidator(_not_ours),
    Field(max_length=32, json_schema_extra={RULES: [_OURS]}),
]  # fmt: skip
