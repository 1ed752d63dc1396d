"""Which field helps where a ResourceQuota or a LimitRange refuses a pod: the API server names resources alone."""

import re

#: By the resource of a quota, or of a LimitRange's sentence.
_FIELDS = (
    (r"limits\.cpu", "spec.pod.limits.cpu"),
    (r"(requests\.)?cpu", "spec.pod.cpu"),
    (r"(limits\.|requests\.)?memory", "spec.accelerator.memory (on a GPU spec.pod.memory)"),
    (r"(limits\.|requests\.)?ephemeral-storage", "spec.pod.limits.ephemeralStorage"),
    (r"requests\.[-./a-z0-9]+", "spec.parallelism or spec.replicas"),
    (r"(count/)?pods", "spec.replicas"),
)
_MUST_SPECIFY = re.compile(r"must specify ([-./,a-z0-9]+)")
_EXCEEDED = re.compile(r"exceeded quota: [^,]+, requested: (.+?), used: ")
#: LimitRange: "maximum cpu usage per Container is 1, but limit is 2", "cpu max limit to request ratio per Container …".
_RANGE = re.compile(r"(?:(maximum|minimum) )?([-./a-z]+) (?:usage|max limit to request ratio) per (?:Container|Pod)")
#: A default of a LimitRange below our request: "must be less than or equal to cpu limit of 500m".
_ABOVE_LIMIT = re.compile(r"must be less than or equal to ([-./a-z]+) limit")


#: Sentences that name resources stand at the beginning. Searching longer words would take minutes.
_READ = 2000


def with_help(words: str) -> str:
    """`words` of the API server, with the fields to change where they are of a quota or of a LimitRange."""
    fields = list(dict.fromkeys(_fields(words[:_READ])))
    if not fields or fields[0] in words:
        return words
    return f"{words.rstrip('. ')}. Set {' and '.join(fields)} to fit, or change the quota or LimitRange"


def _fields(words: str) -> list[str]:
    found: list[str] = []
    for match in _MUST_SPECIFY.finditer(words):
        # A quota on requests alone is satisfied by a limit too, but our containers request CPU and memory anyway.
        found += [_field(resource) for resource in match[1].split(",")]
    for match in _EXCEEDED.finditer(words):
        found += [_field(amount.partition("=")[0]) for amount in match[1].split(",")]
    for match in _RANGE.finditer(words):
        limit = match[2] == "cpu" and match[1] != "minimum"
        found.append(_field("limits.cpu" if limit else match[2]))
    for match in _ABOVE_LIMIT.finditer(words):
        found.append(_field(f"limits.{match[1]}"))
    return [field for field in found if field]


def _field(resource: str) -> str:
    resource = resource.strip()
    return next((field for pattern, field in _FIELDS if re.fullmatch(pattern, resource)), "")
