"""A repository of the Hugging Face hub, or of a mirror of it, read in ranges at one commit."""

import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

from plimsoll.api.errors import CheckpointError
from plimsoll.checkpoint import guard, hub_session
from plimsoll.checkpoint.hub_session import SILENCE
from plimsoll.checkpoint.remote import MOST_FILES, Remote, RemoteFile, TransferError, choose, parts_of, too_many
from plimsoll.checkpoint.sources import HubSource, hub_error

#: HTTP statuses, besides those of 500 and more, that another attempt may mend.
BUSY = (408, 429)
#: Content-Range of an answer to a request for a range (RFC 9110), in ASCII digits.
_SENT_RANGE = re.compile(r"bytes (?P<first>[0-9]+)-[0-9]+/(?P<total>[0-9]+|\*)")
#: A name of content, as git and LFS write it.
_HEX = re.compile(r"[0-9a-f]{16,64}")


class HubRemote(Remote):
    """See `Remote`. `HF_ENDPOINT` and the token (`HF_TOKEN`) work as in huggingface_hub."""

    def __init__(self, hub: HubSource) -> None:
        """Resolve the revision to a commit and list what serving needs.

        Raises:
            CheckpointError: no such repository, revision or file; no access; no connection.
        """
        from huggingface_hub import constants

        guard.check_url(constants.ENDPOINT)
        self.label = str(hub)
        try:
            self.revision = self._commit(hub)
            listed = self._listed(hub, self.revision)
        except CheckpointError:
            raise
        except Exception as error:
            raise _explained(error, hub) from None
        self.source = HubSource(hub.repo, self.revision, hub.file)
        self.path = hub.file or ""
        self.files: Sequence[RemoteFile]
        if hub.file:
            if all(file.name != hub.file for file in listed):
                raise CheckpointError("has no such file at that revision", field=str(hub), value=hub.file)
            self.files = parts_of(hub.file, listed, self.label)
        else:
            self.files, self.path = choose(listed, self.label)

    def _commit(self, hub: HubSource) -> str:
        revision = quote(hub.revision, safe="")
        url = f"{_api()}/{hub.repo}/revision/{revision}"
        return hub_session.commit_of(next(hub_session.pages(url, self.label)), self.label)

    def _listed(self, hub: HubSource, commit: str) -> list[RemoteFile]:
        folder = hub.file.rpartition("/")[0] if hub.file else ""
        url = f"{_api()}/{hub.repo}/tree/{commit}" + (f"/{quote(folder)}" if folder else "")
        found: list[RemoteFile] = []
        for page in hub_session.pages(url, self.label):
            entries = hub_session.list_of(page, self.label)
            found += (_described(entry, self.label) for entry in entries if _is_file(entry))
            if len(found) > MOST_FILES:
                raise too_many(self.label)
        return found

    def _pieces(self, file: RemoteFile, start: int, stop: int) -> Iterator[bytes]:
        from huggingface_hub import constants
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

        headers = {**build_hf_headers(), "Range": f"bytes={start}-{stop - 1}"}
        url = f"{constants.ENDPOINT}/{self.source.repo}/resolve/{self.revision}/{quote(file.name)}"
        try:
            with hub_session.session().stream(
                "GET", url, headers=headers, timeout=SILENCE, follow_redirects=True
            ) as answer:
                hf_raise_for_status(answer)
                # As the network brings them: what is gathered into larger pieces is lost when the connection breaks.
                yield from body(answer.iter_raw(), answer.status_code, answer.headers, file, start, self.label)
        except CheckpointError:
            raise
        except Exception as error:
            raise _explained(error, self.source) from None


def _explained(error: Exception, hub: HubSource) -> CheckpointError:
    """What went wrong, in words for the user; a `TransferError` where another attempt may mend it."""
    from huggingface_hub import constants, get_session

    if refused := guard.refusal(str(hub)):
        return refused
    # The library that does HTTP for the hub's differs from release to release.
    transport = sys.modules[type(get_session()).__module__.partition(".")[0]]
    status = getattr(getattr(error, "response", None), "status_code", 0) or 0
    if status in BUSY or status >= 500:
        return TransferError(f"{constants.ENDPOINT} is busy (HTTP status {status})", field=str(hub), fix="Try again")
    if not isinstance(error, transport.TransportError):
        return hub_error(error, hub)
    name = type(error).__name__
    what = "cannot be reached" if isinstance(error, transport.ConnectError | transport.ConnectTimeout) else "broke off"
    return TransferError(
        f"{constants.ENDPOINT} {what} ({name})", field=str(hub),
        fix="Check spec.model.endpoint (HF_ENDPOINT), the network and its policies",
    )  # fmt: skip


def _api() -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/api/models"


def _is_file(entry: Any) -> bool:
    return isinstance(entry, dict) and entry.get("type") == "file"


def _described(entry: dict[str, Any], label: str) -> RemoteFile:
    """A file of a listing. Raises CheckpointError for what has no name, size or tag."""
    name, size, tag, lfs = entry.get("path"), entry.get("size"), entry.get("oid"), entry.get("lfs")
    kind = "gitblob"
    if lfs is not None:
        kind, tag = "sha256", lfs.get("oid") if isinstance(lfs, dict) else None
    whole = isinstance(size, int) and not isinstance(size, bool)
    if not isinstance(name, str) or not whole or not isinstance(tag, str) or not _HEX.fullmatch(tag):
        raise CheckpointError("lists a file without name, size or checksum", field=label, value=str(entry)[:200])
    return RemoteFile(name, size, tag, f"{kind}:{tag}")  # type: ignore[arg-type]


def body(
    pieces: Iterator[bytes], status: int, headers: Any, file: RemoteFile, start: int, label: str
) -> Iterator[bytes]:
    """The pieces of an answer to a request for a range, from `start` on even if the server sent the whole file.

    Raises:
        CheckpointError: the file is of another size than was listed, or another part of it is sent.
    """
    sent = _SENT_RANGE.fullmatch(str(headers.get("Content-Range", "")).strip())
    if sent is not None and sent["total"] not in ("*", str(file.size)):
        raise CheckpointError(
            f"{file.name} has {sent['total'][:20]} bytes now, and {file.size} when it was listed", field=label,
            fix="Try again",
        )  # fmt: skip
    if status == 206 and (sent is None or sent["first"] != str(start)):
        raise CheckpointError(
            f"the answer for {file.name} is another part of the file than was asked for", field=label,
            value=str(headers.get("Content-Range", ""))[:80], fix="The source, or something on the way, is broken",
        )  # fmt: skip
    if status not in (200, 206):
        raise TransferError(f"{file.name} was answered with HTTP status {status} and no content", field=label)
    skip = start if status == 200 else 0
    for piece in pieces:
        if skip >= len(piece):
            skip -= len(piece)
            continue
        yield piece[skip:] if skip else piece
        skip = 0
