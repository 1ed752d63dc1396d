"""A repository of the Hugging Face hub, or of a mirror of it, read in ranges at one commit."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from plimsoll.api.errors import CheckpointError
from plimsoll.checkpoint import guard
from plimsoll.checkpoint.remote import Remote, RemoteFile, TransferError, choose, parts_of
from plimsoll.checkpoint.sources import HubSource, hub_error

#: Seconds without a byte after which a connection is given up, and tried anew.
SILENCE = 30.0
#: HTTP statuses, besides those of 500 and more, that another attempt may mend.
BUSY = (408, 429)


class HubRemote(Remote):
    """See `Remote`. `HF_ENDPOINT` and the token (`HF_TOKEN`) work as in huggingface_hub."""

    def __init__(self, hub: HubSource) -> None:
        """Resolve the revision to a commit and list what serving needs.

        Raises:
            CheckpointError: no such repository, revision or file; no access; no connection.
        """
        from huggingface_hub import HfApi, constants, get_session
        from huggingface_hub.hf_api import RepoFile

        guard.check_url(constants.ENDPOINT)
        get_session().timeout = SILENCE
        api = HfApi()
        try:
            commit = api.model_info(hub.repo, revision=hub.revision, timeout=SILENCE).sha
            self.revision = str(commit)
            folder = hub.file.rpartition("/")[0] if hub.file else None
            listed = [
                _described(entry)
                for entry in api.list_repo_tree(hub.repo, path_in_repo=folder or None, revision=self.revision)
                if isinstance(entry, RepoFile)
            ]
        except Exception as error:
            raise _explained(error, hub) from None
        self.source = HubSource(hub.repo, self.revision, hub.file)
        self.label = str(hub)
        self.path = hub.file or ""
        self.files: Sequence[RemoteFile]
        if hub.file:
            if all(file.name != hub.file for file in listed):
                raise CheckpointError("has no such file at that revision", field=str(hub), value=hub.file)
            self.files = parts_of(hub.file, listed, self.label)
        else:
            self.files, self.path = choose(listed, self.label)

    def stream(self, file: RemoteFile, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        from huggingface_hub import constants, get_session, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

        stop = file.size if stop is None else min(stop, file.size)
        if start >= stop:
            return
        headers = {**build_hf_headers(), "Accept-Encoding": "identity", "Range": f"bytes={start}-{stop - 1}"}
        url = hf_hub_url(self.source.repo, file.name, revision=self.source.revision, endpoint=constants.ENDPOINT)
        try:
            with get_session().stream("GET", url, headers=headers, timeout=SILENCE, follow_redirects=True) as answer:
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


def _described(entry: Any) -> RemoteFile:
    if entry.lfs is not None:
        return RemoteFile(entry.path, entry.size, entry.lfs.sha256, f"sha256:{entry.lfs.sha256}")
    return RemoteFile(entry.path, entry.size, entry.blob_id, f"gitblob:{entry.blob_id}")


def body(
    pieces: Iterator[bytes], status: int, headers: Any, file: RemoteFile, start: int, label: str
) -> Iterator[bytes]:
    """The pieces of an answer to a request for a range, from `start` on even if the server sent the whole file.

    Raises:
        CheckpointError: the file is of another size than was listed.
    """
    total = str(headers.get("Content-Range", "")).rpartition("/")[2]
    if total.isdigit() and int(total) != file.size:
        raise CheckpointError(
            f"{file.name} has {total} bytes now, and {file.size} when it was listed", field=label, fix="Try again"
        )
    skip = start if status == 200 else 0
    for piece in pieces:
        if skip >= len(piece):
            skip -= len(piece)
            continue
        yield piece[skip:] if skip else piece
        skip = 0
