"""Where a checkpoint comes from: a path on this machine, or a repository on the Hugging Face hub."""

import contextlib
import errno
import glob
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from plimsoll.api.errors import CheckpointError, PlimsollError, SpecError
from plimsoll.api.source import FIELD, parse_source
from plimsoll.checkpoint.gguf_split import part_names
from plimsoll.checkpoint.remote import EXTRAS, NEEDED

#: Called with (bytes here, bytes wanted) as a download goes; the second grows as sizes become known.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class HubSource:
    """`hf://org/name@revision`, or one GGUF file of it. `revision` is a branch, a tag or a commit."""

    repo: str
    revision: str
    file: str | None

    def __str__(self) -> str:
        return f"hf://{self.repo}@{self.revision}" + (f"/{self.file}" if self.file else "")


@contextlib.contextmanager
def named(field: str) -> Iterator[None]:
    """Errors on a source inside the block name the field or the option that it stands in."""
    try:
        yield
    except PlimsollError as error:
        error.field = field if error.field == FIELD else error.field
        raise


def parse_hub(source: str) -> HubSource:
    """Take apart `hf://org/name[@revision][/file.gguf]`; a slash inside a revision is written %2F.

    Raises:
        SpecError: not of that form.
    """
    found = parse_source(source)
    return HubSource(found.name, found.revision or "main", found.path or None)


def resolve(
    source: str, *, progress: Progress | None = None, offline: bool | None = None, files: Sequence[str] | None = None
) -> Path:
    """The folder or GGUF file on this machine that `source` names, downloaded if need be.

    Args:
        source: `file://` with an absolute or relative path, a plain path, or `hf://org/name[@revision][/file.gguf]`.
        progress: called with the bytes as a download goes.
        offline: True uses only what is cached; None leaves it to HF_HUB_OFFLINE.
        files: of a repository on the hub, only these; None for all that serving needs.

    HF_HOME, HF_ENDPOINT and the token (HF_TOKEN or `hf auth login`) work as in huggingface_hub. A connection that drops
    is resumed where it broke; files that arrived whole are never fetched again.

    Raises:
        SpecError: an address of a kind that is not known here.
        CheckpointError: nothing there, no access, no connection, no space.
    """
    if source.startswith("hf://"):
        return _from_hub(parse_hub(source), progress, offline, files)
    scheme, separator, rest = source.partition("://")
    if separator and scheme != "file":
        raise SpecError(
            "is a kind of source that cannot be opened on this machine",
            field=FIELD,
            value=source,
            fix="Use file://PATH or hf://org/name@revision",
        )
    path = Path(unquote(rest) if separator else source).expanduser()
    if not str(rest if separator else source).strip():
        raise SpecError("is empty", field=FIELD, value=source, fix="Write file://PATH")
    try:
        there = path.exists()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot be looked at: {error}", field=FIELD, value=source) from None
    if not there:
        raise CheckpointError(
            "there is no such file or folder",
            field=FIELD,
            value=str(path.absolute()),
            fix="Check the path; relative ones start where the command runs",
        )
    return path.resolve() if path.is_dir() else path.absolute()


def _from_hub(hub: HubSource, progress: Progress | None, offline: bool | None, files: Sequence[str] | None) -> Path:
    from huggingface_hub import snapshot_download

    from plimsoll.checkpoint import hub_session

    hub_session.session()
    # fnmatch treats brackets in a file's name as a set.
    wanted = [glob.escape(part) for part in part_names(hub.file)] if hub.file else list(files or NEEDED)
    try:
        snapshot = Path(
            snapshot_download(
                hub.repo,
                revision=hub.revision,
                allow_patterns=wanted,
                ignore_patterns=None if hub.file else list(EXTRAS),
                local_files_only=bool(offline),
                tqdm_class=_progress_bar(progress or (lambda done, total: None)),
            )
        )
    except Exception as error:
        raise hub_error(error, hub) from error
    if hub.file:
        if not (snapshot / hub.file).is_file():
            raise CheckpointError(
                "has no such file at that revision", field=str(hub), value=hub.file, fix=_listing(hub, offline)
            )
        return snapshot / hub.file
    if files is None and not any(snapshot.glob("*.safetensors")):
        raise CheckpointError("has no safetensors weights at that revision", field=str(hub), fix=_listing(hub, offline))
    return snapshot


def _listing(hub: HubSource, offline: bool | None) -> str:
    """What to do, from what the repository does hold."""
    from huggingface_hub import HfApi

    try:
        names = [] if offline else HfApi().list_repo_files(hub.repo, revision=hub.revision)
    except Exception:  # Only an embellishment of an error: nothing here may hide it.
        names = []
    ggufs = [name for name in names if name.endswith(".gguf")]
    if ggufs:
        return f"It has GGUF files; name one: hf://{hub.repo}@{hub.revision}/{ggufs[0]}"
    return "Choose a repository with safetensors or GGUF files; pickled weights are never loaded"


def _progress_bar(progress: Progress) -> type[Any]:
    from huggingface_hub.utils import tqdm

    lock = threading.Lock()

    class Bar(tqdm):
        """Tells `progress` of bytes, from the one bar of several that counts them on disk, and draws nothing."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.counts_bytes = kwargs.get("name") == "huggingface_hub.snapshot_download"
            self.done = 0
            super().__init__(*args, **(kwargs | {"disable": True}))  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            if self.counts_bytes:
                with lock:
                    self.done += int(n or 0)
                    progress(self.done, int(self.total or 0))
            return None

    return Bar


#: Where a token is taken from: here, and in the pods of a manifest.
_TOKEN = "set HF_TOKEN or run `hf auth login`; in a cluster, put HF_TOKEN in the Secret that `credentialsSecret` names"


def hub_error(error: Exception, hub: HubSource) -> CheckpointError:
    """What went wrong with a download, in words for the user. Headers and tokens never reach the message."""
    from huggingface_hub import constants, errors, get_token

    status = getattr(getattr(error, "response", None), "status_code", None)
    cause = error.__cause__ or error
    if isinstance(error, errors.GatedRepoError):
        message = "is gated: its owner lets in only accounts that accepted its terms"
        message += ", and the token that was sent is not of one" if get_token() else ", and no token was sent"
        fix = f"Accept them at {constants.ENDPOINT}/{hub.repo}, then {_TOKEN}"
    elif isinstance(error, errors.RepositoryNotFoundError):
        message = "there is no such repository, or it is private and this token has no access"
        fix = f"Check the name; for a private one {_TOKEN}"
    elif isinstance(error, errors.RevisionNotFoundError):
        message, fix = f"has no revision {hub.revision!r}", "Name a branch, tag or commit of this repository"
    elif isinstance(error, errors.LocalEntryNotFoundError) and (
        constants.HF_HUB_OFFLINE or cause is error or isinstance(cause, errors.OfflineModeIsEnabled)
    ):
        message = "is not whole in the cache, and downloads are off"
        fix = "Download it once while online, or unset HF_HUB_OFFLINE"
    elif isinstance(error, errors.LocalEntryNotFoundError):
        message = f"cannot be reached at {constants.ENDPOINT} ({_reason(cause)}), and is not in the cache"
        fix = "Check the network and HF_ENDPOINT"
    elif isinstance(error, errors.HFValidationError):
        message, fix = "is not a repository's name", "Write hf://org/name@revision"
    elif isinstance(error, errors.FileMetadataError):
        message = f"{constants.ENDPOINT} does not answer like a hub"
        fix = "Check HF_ENDPOINT, proxies and firewalls"
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        message = f"does not fit on the disk that holds {constants.HF_HUB_CACHE}"
        fix = "Free space there, or set HF_HOME to a larger disk; what has arrived whole is kept"
    elif isinstance(error, PermissionError):
        message, fix = f"cannot be written to {constants.HF_HUB_CACHE}", "Set HF_HOME to a folder you may write"
    elif status is not None:
        message = f"{constants.ENDPOINT} answered with HTTP status {status}"
        fix = "Try again later; for 401 and 403 check HF_TOKEN"
    else:
        message, fix = f"the download broke off ({_reason(cause)})", "Run the command again: whole files are kept"
    return CheckpointError(message, field=str(hub), fix=fix)


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
