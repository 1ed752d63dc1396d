"""Addresses of checkpoints, taken apart. Pure: nothing is looked up."""

import re
from dataclasses import dataclass
from typing import Literal

from plimsoll.api.errors import SpecError

Scheme = Literal["file", "hf", "pvc", "s3", "oci"]
FIELD = "spec.model.source"

_FORMS = {
    "hf": "hf://ORG/NAME@REVISION, or hf://ORG/NAME@REVISION/FILE.gguf",
    "s3": "s3://BUCKET/PREFIX, or s3://BUCKET/PATH/FILE.gguf",
    "pvc": "pvc://CLAIM/PATH",
    "oci": "oci://IMAGE@sha256:DIGEST, and /PATH behind it where the image holds several checkpoints",
    "file": "file://PATH",
}
_PATTERNS = {
    "hf": re.compile(
        r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[^/@\s]+))?(/(?P<path>[^@\s]+\.gguf))?",
        re.ASCII,
    ),
    "s3": re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9])(/(?P<path>[^\x00-\x1f\x7f]*))?"),
    "pvc": re.compile(
        r"(?P<name>[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*)(/(?P<path>[^\x00-\x1f\x7f]*))?"
    ),
    "oci": re.compile(
        r"(?P<name>[A-Za-z0-9][A-Za-z0-9._:/-]*)@(?P<revision>sha256:[0-9a-f]{64})(/(?P<path>[^\x00-\x1f\x7f]*))?"
    ),
    "file": re.compile(r"(?P<name>)(?P<path>[^\x00]*[^\x00\s][^\x00]*)"),
}
#: The address of a service, in what Python's dialect and RE2 share.
ENDPOINT = r"https?://(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9_.-]+)(:\d{1,5})?(/[^\s?#@\\]*)?"


@dataclass(frozen=True)
class Source:
    """`scheme://name@revision/path`.

    Attributes:
        name: the repository, bucket, claim or image; empty for file://.
        path: a folder or GGUF file in it, without slashes at its ends; empty for all of it. For file://, as written.
        revision: hf: a branch, tag or commit, `main` where none is written; oci: `sha256:…`; None for the others.
    """

    scheme: Scheme
    name: str
    path: str = ""
    revision: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision.replace('/', '%2F')}" if self.revision else ""
        if self.scheme == "file":
            return f"file://{self.path}"
        return f"{self.scheme}://{self.name}{revision}" + (f"/{self.path}" if self.path else "")


def parse_source(source: str) -> Source:
    """Take an address apart. A slash inside a hub's revision is written %2F.

    Raises:
        SpecError: not an address of a kind that is known, or one that leaves the place it names.
    """
    scheme, separator, rest = source.partition("://")
    if not separator or scheme not in _FORMS:
        raise SpecError(
            "is not an address of a checkpoint", field=FIELD, value=source,
            fix="Write hf://ORG/NAME@REVISION, s3://BUCKET/PREFIX, pvc://CLAIM/PATH, oci://IMAGE@sha256:DIGEST "
            "or file://PATH",
        )  # fmt: skip
    match = _PATTERNS[scheme].fullmatch(rest)
    found = match.groupdict() if match else {}
    path = found.get("path") or ""
    revision = found.get("revision")
    if scheme == "hf" and found:
        revision = _percent(revision or "main")
    if scheme != "file":
        path = path.strip("/")
        # A folder that a claim or an image holds is mounted by this path: it must not lead out of it.
        strays = (".", "..", "")
        if match is None or (path and any(part in strays for part in path.split("/"))) or ".." in found["name"]:
            what = "is not a hub address" if scheme == "hf" else f"is not an address of the kind {scheme}://"
            raise SpecError(what, field=FIELD, value=source, fix=f"Write {_FORMS[scheme]}")
    elif match is None:
        raise SpecError("is empty", field=FIELD, value=source, fix="Write file://PATH")
    return Source(scheme, found["name"], path, revision)  # type: ignore[arg-type]


def address_pattern(scheme: Scheme) -> str:
    """The regular expression of a whole address, in what Python's dialect and RE2 (the API server's) share."""
    unnamed = re.sub(r"\?P<[a-z]+>", "", _PATTERNS[scheme].pattern)
    return f"^{scheme}://{unnamed}$"


def address_form(scheme: Scheme) -> str:
    """How addresses of this kind are written, for people."""
    return _FORMS[scheme]


def _percent(text: str) -> str:
    return re.sub(r"%([0-9A-Fa-f]{2})", lambda match: chr(int(match[1], 16)), text)


def endpoint_host(endpoint: str) -> str:
    """The host of an http(s) URL.

    Raises:
        SpecError: not such a URL, or one with a user name, a password, a query or a fragment in it.
    """
    match = re.fullmatch(ENDPOINT, endpoint, re.ASCII)
    if match is None:
        raise SpecError(
            "is not the address of a service", field="spec.model.endpoint", value=re.sub("//.*@", "//…@", endpoint),
            fix="Write https://HOST or https://HOST:PORT; names and passwords go into credentialsSecret",
        )  # fmt: skip
    return match[1]
