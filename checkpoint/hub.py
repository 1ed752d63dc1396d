"""Repositories of the Hugging Face hub, or of a mirror of it, at one commit: models by ranges, datasets by file."""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
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
#: Before the name of a dataset, in its source and in the hub's addresses alike.
DATASETS = "datasets/"


def look_up(hub: HubSource) -> tuple[HubSource, dict[str, Any]]:
    """The repository at the commit that its revision means now, and what the hub says of that commit.

    `HF_ENDPOINT` and the token (`HF_TOKEN`) work as in huggingface_hub.

    Raises:
        CheckpointError: no such repository or revision; no access; no connection; a forbidden endpoint.
    """
    from huggingface_hub import constants

    guard.check_url(constants.ENDPOINT)
    with _in_words(hub):
        found = next(hub_session.pages(f"{_api(hub)}/revision/{quote(hub.revision, safe='')}", str(hub)))
        commit = hub_session.commit_of(found, str(hub))
    return replace(hub, revision=commit), found


def listed_names(hub: HubSource, found: dict[str, Any]) -> list[str]:
    """Names of the files in what `look_up` found. Raises CheckpointError."""
    entries = hub_session.list_of(found.get("siblings") or [], str(hub))
    names = [entry.get("rfilename") for entry in entries if isinstance(entry, dict)]
    return [name for name in names if isinstance(name, str) and ".." not in name.split("/")]


def cached_file(hub: HubSource, name: str) -> Path:
    """A file of a dataset in this machine's cache (`HF_HOME`), downloaded if need be. Raises CheckpointError."""
    from huggingface_hub import hf_hub_download

    hub_session.session()
    with _in_words(hub):
        repo = hub.repo.removeprefix(DATASETS)
        return Path(hf_hub_download(repo, name, repo_type="dataset", revision=hub.revision))


class HubRemote(Remote):
    """See `Remote` and `look_up`."""

    def __init__(self, hub: HubSource) -> None:
        """Resolve the revision to a commit and list what serving needs.

        Raises:
            CheckpointError: no such repository, revision or file; no access; no connection.
        """
        self.label = str(hub)
        self.source, _ = look_up(hub)
        self.revision = self.source.revision
        with _in_words(hub):
            listed = self._listed()
        self.path = hub.file or ""
        self.files: Sequence[RemoteFile]
        if hub.file:
            if all(file.name != hub.file for file in listed):
                raise CheckpointError("has no such file at that revision", field=str(hub), value=hub.file)
            self.files = parts_of(hub.file, listed, self.label)
        else:
            self.files, self.path = choose(listed, self.label)

    def _listed(self) -> list[RemoteFile]:
        folder = self.source.file.rpartition("/")[0] if self.source.file else ""
        url = f"{_api(self.source)}/tree/{self.revision}" + (f"/{quote(folder)}" if folder else "")
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
        with (
            _in_words(self.source),
            hub_session.session().stream("GET", url, headers=headers, timeout=SILENCE, follow_redirects=True) as answer,
        ):
            hf_raise_for_status(answer)
            # As the network brings them: what is gathered into larger pieces is lost when the connection breaks.
            yield from body(answer.iter_raw(), answer.status_code, answer.headers, file, start, self.label)


@contextmanager
def _in_words(hub: HubSource) -> Iterator[None]:
    """Raises CheckpointError for every error of the hub, the client or the network."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise _explained(error, hub) from None


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


def _api(hub: HubSource) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/api/{'' if hub.repo.startswith(DATASETS) else 'models/'}{hub.repo}"


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
