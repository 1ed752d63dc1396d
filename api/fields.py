"""What the fields of a manifest are made of: the strict base, names and amounts, each as Python and as the API server
check it. `json_schema_extra` of a field goes into the CRD as it is.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import InitErrorDetails

from plimsoll.api.pod_marks import weakens
from plimsoll.api.quantity import parse_bytes, parse_cpus, parse_seconds
from plimsoll.api.rules import NOT_OURS, OURS_WORDS, RULES, rule

#: What the CRD leaves out: it only works on the machine that the manifest lies on.
LAPTOP_ONLY = "x-plimsoll-laptop-only"
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


def fault_at(place: tuple[str, ...], words: str, value: Any) -> ValidationError:
    """What a validator of a whole raises when one field of it, at `place` below, is at fault."""
    details = InitErrorDetails(type="value_error", loc=place, input=value, ctx={"error": ValueError(words)})
    return ValidationError.from_exception_data("spec", [details])


def _amount(parse: Callable[[Any], float], pattern: str, low: float, high: float, words: str) -> BeforeValidator:
    """Text as the CRD takes it, or a bare number, within bounds (above 0 where `low` is)."""
    compiled = re.compile(pattern, re.ASCII)

    def check(value: Any) -> Any:
        if isinstance(value, str) and not (value and compiled.fullmatch(value)):
            raise ValueError(words)
        found = parse(value)
        if not low <= found <= high:
            raise ValueError(words)
        return found

    return BeforeValidator(check)


def _quantity_schema(high: str, most: int, words: str) -> WithJsonSchema:
    within = f"quantity(self).compareTo(quantity('0')) > 0 && quantity(self).compareTo(quantity('{high}')) <= 0"
    schema: dict[str, Any] = {
        "x-kubernetes-int-or-string": True, "pattern": _QUANTITY, "maxLength": 32, "minimum": 1, "maximum": most,
    }  # fmt: skip
    # A string that is none is the pattern's to refuse.
    return WithJsonSchema({**schema, RULES: [rule(f"type(self) == int || !isQuantity(self) || ({within})", words)]})


def _duration_schema(low: str, words: str) -> WithJsonSchema:
    within = f"duration(self) >= duration('{low}') && duration(self) <= duration('24h')"
    schema: dict[str, Any] = {"type": "string", "pattern": _DURATION, "minLength": 2, "maxLength": 24}
    return WithJsonSchema({**schema, RULES: [rule(f"!self.matches(r'{_DURATION}') || ({within})", words)]})


_MEMORY = "must be a quantity such as 24Gi, above 0 and at most 1Pi"
Memory = Annotated[
    int, _amount(parse_bytes, _QUANTITY, 1, MAX_MEMORY, _MEMORY), _quantity_schema("1Pi", MAX_MEMORY, _MEMORY)
]
"""Memory as whole bytes."""
_CPUS = "must be a number of processors such as 2 or 1500m, above 0 and at most 1024"
_THREADS = _amount(parse_cpus, _QUANTITY, 1, MAX_CPUS, _CPUS)
CPU_SCHEMA = _quantity_schema("1024", MAX_CPUS, _CPUS)
Processors = Annotated[int, _THREADS, CPU_SCHEMA]
"""Processors as whole threads."""
_WAIT = "must be a duration such as 120s, 2m or 1h30m, at most 24h"
Wait = Annotated[float, _amount(parse_seconds, _DURATION, 0, DAY, _WAIT), _duration_schema("0s", _WAIT)]
"""A time that may be none, as seconds."""
_TIMEOUT = "must be a duration such as 120s, 2m or 1h30m, from 1ms to 24h"
Timeout = Annotated[float, _amount(parse_seconds, _DURATION, 0.001, DAY, _TIMEOUT), _duration_schema("1ms", _TIMEOUT)]
"""A time above none, as seconds."""
_DEADLINE = "must be a duration such as 120s, 2m or 1h30m, from 1s to 24h"
Deadline = Annotated[float, _amount(parse_seconds, _DURATION, 1, DAY, _DEADLINE), _duration_schema("1s", _DEADLINE)]
"""A time of a second or more, as seconds."""


def parse_processors(value: Any) -> int:
    """Whole threads of an amount of processors. Raises ValueError for what is none, or out of bounds."""
    return int(_THREADS.func(value))  # type: ignore[call-arg]


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


def _marks(pairs: dict[str, str]) -> dict[str, str]:
    for key in _keys(pairs):
        if key.startswith("plimsoll.dev/") or key in ("app.kubernetes.io/name", "app.kubernetes.io/managed-by"):
            raise ValueError(OURS_WORDS)
        if does := weakens(key):
            raise ValueError(f"{key[:80]!r} {does}, which the operator does not allow in its pods. Remove it")
    return pairs


def _key(value: str) -> str:
    _keys({value: ""})
    return value


_KEY_SCHEMA = {"type": "string", "minLength": 1, "maxLength": 317, "pattern": f"^{_LABEL_KEY.pattern}$"}
LabelKey = Annotated[str, AfterValidator(_key), WithJsonSchema(_KEY_SCHEMA)]
"""The name of a label."""
LabelValue = Annotated[str, Field(pattern=_LABEL_VALUE, max_length=63)]
NodeLabels = Annotated[dict[str, LabelValue], Field(max_length=32), AfterValidator(_keys)]
"""Labels that a node must have."""
_OURS = Field(max_length=32, json_schema_extra={RULES: NOT_OURS})
PodLabels = Annotated[dict[str, LabelValue], _OURS, AfterValidator(_marks)]
"""Labels of pods that are not the operator's own, and weaken nothing."""
_Text = Annotated[str, Field(max_length=16384)]
PodAnnotations = Annotated[dict[str, _Text], _OURS, AfterValidator(_marks)]
"""Annotations of pods that are not the operator's own, and weaken nothing."""
