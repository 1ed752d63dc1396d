"""Real clients, each in the way its own users call it, against one server of the demo model.

`make clients` runs these tests in an environment of their own, since the clients are many and large. `make test`
collects none of them: it sets no PLIMSOLL_CLIENTS_COMMAND.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

COMMAND = os.environ.get("PLIMSOLL_CLIENTS_COMMAND")
if not COMMAND:
    collect_ignore_glob = ["test_*.py"]

MODEL = "demo"
KEY = "clients-of-a-test"


class Server(NamedTuple):
    """Where clients find the server."""

    url: str
    """Ends in /v1."""
    root: str
    model: str
    key: str


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`plimsoll serve` of the demo model, started by the command in PLIMSOLL_CLIENTS_COMMAND, with an API key."""
    assert COMMAND
    keys = tmp_path_factory.mktemp("server") / "keys"
    keys.write_text(f"{KEY}\n")
    keys.chmod(0o600)
    options = ["--server-port", "0", "--model-name", MODEL, "--api-keys", str(keys), "--kv-cache-bytes", "128Mi"]
    process = subprocess.Popen(
        [*shlex.split(COMMAND), *options, "--drain-timeout", "1"], stderr=subprocess.STDOUT, stdout=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout
    try:
        url = _url(process)
        # The log goes on: a full pipe would stop the server.
        threading.Thread(target=sys.stderr.writelines, args=[process.stdout], daemon=True).start()
        yield Server(url, url.removesuffix("/v1"), MODEL, KEY)
    finally:
        # The command may have started the server as a child of its own.
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def _url(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    said = []
    for line in process.stdout:
        said.append(line)
        if found := re.search(r"http://[\d.]+:\d+/v1", line):
            return found.group()
    raise AssertionError(f"the server ended with {process.wait()}: {''.join(said)}")


@pytest.fixture(scope="session")
def node() -> Path:
    """The folder with the `node_modules` that package.json lists."""
    folder = Path(os.environ["PLIMSOLL_CLIENTS_NODE"])
    if not (folder / "node_modules").is_dir():
        pytest.skip("npm was not on PATH when the clients were installed")
    return folder
