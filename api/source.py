"""Addresses of checkpoints, taken apart; and which hosts no checkpoint may come from. Pure: nothing is looked up."""

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal

from plimsoll.api.errors import SpecError

Scheme = Literal["file", "hf", "pvc", "s3", "oci"]
FIELD = "spec.model.source"

#: Where a cloud's metadata, or the cluster itself, answers: no checkpoint comes from there, whatever the lists say.
FORBIDDEN_HOSTS = (
    "169.254.0.0/16", "fe80::/10", "fd00:ec2::/32", "127.0.0.0/8", "::1/128", "0.0.0.0/8", "::/128",
    "100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32",
    "localhost", "metadata", "metadata.google.internal", "instance-data",
    "kubernetes", "kubernetes.default", "kubernetes.default.svc",
)  # fmt: skip
_NETWORKS = tuple(ipaddress.ip_network(entry) for entry in FORBIDDEN_HOSTS if "/" in entry)
_NAMES = tuple(entry for entry in FORBIDDEN_HOSTS if "/" not in entry)
#: IPv6 networks whose last 32 bits are an IPv4 address that a gateway goes on to.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

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


def forbidden_host(host: str) -> str | None:
    """Why no checkpoint may come from this host (a name or a literal address, in any spelling), or None.

    Only what is written is judged; a name may still resolve to such an address, which is checked where it is resolved.
    """
    name = host.strip().strip("[]").partition("%")[0].rstrip(".").lower()
    address = _address(name)
    if address is not None:
        network = next((net for net in _NETWORKS if address.version == net.version and address in net), None)
        return f"{address} belongs to this machine or to a cloud's metadata ({network})" if network else None
    for entry in _NAMES:
        if name == entry or name.endswith(f".{entry}") or (entry == "kubernetes.default" and _below(name, entry)):
            return f"{name} is a name of this machine, of the cluster itself or of a cloud's metadata"
    return None


def _below(name: str, entry: str) -> bool:
    """Whether `name` is `entry` with a search domain behind it."""
    return name.startswith(f"{entry}.")


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return _loose_ipv4(name)
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return inner or address
    return address


def _loose_ipv4(name: str) -> ipaddress.IPv4Address | None:
    """What resolvers make of `127.1`, `2130706433`, `0x7f.0.0.1` and `0177.0.0.1`."""
    parts = name.split(".")
    if not 1 <= len(parts) <= 4:
        return None
    numbers = []
    for part in parts:
        if re.fullmatch(r"0x[0-9a-f]+", part):
            numbers.append(int(part, 16))
        elif re.fullmatch(r"0[0-7]*", part):
            numbers.append(int(part, 8))
        elif re.fullmatch(r"[1-9][0-9]*", part):
            numbers.append(int(part))
        else:
            return None
    *heads, last = numbers
    if any(number > 255 for number in heads) or last >= 256 ** (5 - len(numbers)):
        return None
    value = last
    for index, number in enumerate(heads):
        value += number << (24 - 8 * index)
    return ipaddress.IPv4Address(value)
