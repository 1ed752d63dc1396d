"""The HTTP session for all requests to a hub, and the limits that it sets to a hostile hub.

- A token goes to the hub alone: neither a redirect nor a link to a next page takes it to another host.
- A host that the guard forbids is refused as it is written, also where a proxy would look it up.
- Answers that are read whole (listings, errors, redirects) have a limit of size and of time, and come as they are:
  a small compressed body may stand for gigabytes.

What is streamed is counted where it is read (`Remote.stream`).
"""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from plimsoll.api.errors import CheckpointError
from plimsoll.checkpoint import guard
from plimsoll.checkpoint.answers import limited

#: Of a listing's page: a thousand files are about 400 KB.
MOST_BYTES = 16 << 20
#: Of an error's or a redirect's body, of which a line is read.
MOST_ERROR_BYTES = 1 << 20
#: For one answer that is read whole, in seconds.
LONGEST = 60.0
#: Pages of one listing, which hold up to a thousand files each.
MOST_PAGES = 100
#: Seconds without a byte after which a connection is given up.
SILENCE = 30.0
_TRAVELS = "plimsoll_whole"
_PORTS = {"http": 80, "https": 443}


def session() -> Any:
    """huggingface_hub's own session (an httpx client), with the limits of this module."""
    from huggingface_hub import get_session

    found = get_session()
    hooks = found.event_hooks
    if _sent not in hooks["request"]:
        found.event_hooks = {
            "request": [*hooks["request"], _sent], "response": [*hooks["response"], _received],
        }  # fmt: skip
    return found


def pages(url: str, label: str) -> Iterator[Any]:
    """The JSON of `url`, and of the pages that the hub says follow it.

    Raises:
        CheckpointError: too much, not JSON, or a next page that is another host's.
        Exception: those of huggingface_hub and its HTTP library, for what the hub refuses and for broken connections.
    """
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    client = session()
    for _ in range(MOST_PAGES):
        answer = client.get(url, headers=build_hf_headers(), timeout=SILENCE, follow_redirects=True)
        hf_raise_for_status(answer)
        try:
            yield json.loads(answer.content)
        except (ValueError, RecursionError):
            raise _not_a_hub(label) from None
        following = answer.links.get("next", {}).get("url")
        if following is None:
            return
        joined = str(answer.url.join(following))
        if _origin(joined) != _origin(url):
            raise CheckpointError(
                f"{_host(url)} continues its list of files at another host", field=label, value=_host(joined),
                fix="Name a hub that lists its own files",
            )  # fmt: skip
        url = joined
    raise CheckpointError(f"{_host(url)} lists files on more than {MOST_PAGES} pages", field=label)


def object_of(found: Any, label: str) -> dict[str, Any]:
    """`found`, where it is a JSON object. Raises CheckpointError."""
    if not isinstance(found, dict):
        raise _not_a_hub(label)
    return found


def list_of(found: Any, label: str) -> list[Any]:
    """`found`, where it is a JSON array. Raises CheckpointError."""
    if not isinstance(found, list):
        raise _not_a_hub(label)
    return found


def commit_of(found: Any, label: str) -> str:
    """The commit that a hub's answer about a repository names. Raises CheckpointError."""
    commit = object_of(found, label).get("sha")
    if not isinstance(commit, str) or not commit.isascii() or not commit.isalnum() or len(commit) > 64:
        raise _not_a_hub(label)
    return commit


def _not_a_hub(label: str) -> CheckpointError:
    from huggingface_hub import constants

    return CheckpointError(
        f"{constants.ENDPOINT} does not answer like a hub", field=label, fix="Check spec.model.endpoint (HF_ENDPOINT)"
    )


def _sent(request: Any) -> None:
    """Of every request, redirected ones included."""
    from huggingface_hub import constants

    url = str(request.url)
    guard.check_host(request.url.host, _host(url))
    own, hub = _origin(url), _origin(constants.ENDPOINT)
    upgraded = (own[1:], hub[1:]) == ((hub[1], 443), (hub[1], 80)) and own[0] == "https"
    if own != hub and not upgraded:
        request.headers.pop("Authorization", None)
        request.headers.pop("Cookie", None)
    request.headers["Accept-Encoding"] = "identity"
    # Redirects of a request carry its extensions on.
    if urlsplit(constants.ENDPOINT).path.rstrip("/") + "/api/" in urlsplit(url).path:
        request.extensions[_TRAVELS] = True


def _received(answer: Any) -> None:
    """Before anything of the body is read."""
    whole = bool(answer.request.extensions.get(_TRAVELS))
    if answer.status_code in (200, 206) and not whole:
        return
    where = _host(str(answer.request.url))
    if answer.headers.get("Content-Encoding", "identity") not in ("", "identity"):
        raise CheckpointError(
            f"{where} sends a compressed answer where a plain one was asked for", field="spec.model.endpoint",
            fix="Check the hub, and proxies before it",
        )  # fmt: skip
    answer.stream = _bounded(answer.stream, MOST_BYTES if answer.status_code == 200 else MOST_ERROR_BYTES, where)


def _bounded(stream: Any, limit: int, where: str) -> Any:
    class Bounded(type(stream).__mro__[-2]):  # type: ignore[misc]
        """The same stream, as the HTTP library of the hub's client knows streams, up to a limit."""

        def __iter__(self) -> Iterator[bytes]:
            yield from limited(stream, limit, LONGEST, where)

        def close(self) -> None:
            stream.close()

    return Bounded()


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    return parts.scheme, (parts.hostname or "").lower(), port or _PORTS.get(parts.scheme, 0)


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2][:200]
