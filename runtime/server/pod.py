"""One pod: probes are answered from the first moment, the model is served once it is there, SIGTERM empties the pod.

Everything shares one event loop, in the main thread where signals arrive; imports and headers, which take seconds, are
read in a thread beside it.
"""

import asyncio
import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from plimsoll.api.errors import PlimsollError, SpecError
from plimsoll.api.printable import printable
from plimsoll.runtime.server.listener import http_server, is_local, listen
from plimsoll.runtime.server.loop import run
from plimsoll.runtime.server.status_port import QUIET_SECONDS, StatusPort

if TYPE_CHECKING:
    from plimsoll.runtime.server.following import Following
    from plimsoll.runtime.server.service import Service

MANIFEST = "PLIMSOLL_DEPLOYMENT"
"""The environment variable with the ModelDeployment, as JSON; its source is a file:// of this container."""

DIGEST = "PLIMSOLL_CHECKPOINT_DIGEST"
"""Where a quantization job's output is served: `sha256:…` of the manifest that must lie beside the weights."""

TERMINATION_LOG = "PLIMSOLL_TERMINATION_LOG"
TERMINATION_BYTES = 4096
"""Kubernetes keeps no more of a container's last words."""

STATUS_CONNECTIONS = 64
"""Of probes, the operator and scrapers, at once."""

log = structlog.get_logger("plimsoll.pod")


def run_pod(host: str, port: int, status_port: int) -> int:
    """Serves until SIGTERM, and drains. Returns the process's exit status: 0 after SIGTERM, 1 with last words."""
    try:
        run(_live(host, port, status_port))
    except PlimsollError as error:
        words = str(error) + _memory_words()
        last_words(words)
        log.error("stopped", reason=words)
        return 1
    except Exception as error:
        last_words(f"crashed: {type(error).__name__}: {error}")
        log.exception("crashed")
        return 1
    return 0


def last_words(text: str) -> None:
    """Leaves `text` where the container's owner looks for it (`terminated.message`)."""
    path = Path(os.environ.get(TERMINATION_LOG) or "/dev/termination-log")
    # Outside of a container there is no such file, and it must not appear.
    with contextlib.suppress(OSError), path.open("r+b" if path == Path("/dev/termination-log") else "wb") as file:
        file.write(printable(text).encode("utf-8", "replace")[:TERMINATION_BYTES])


async def _live(host: str, port: int, status_port: int) -> None:
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    listener = listen(host, status_port, "status-port")
    page = StatusPort(_process_began(), local=is_local(listener))
    http = http_server(page, STATUS_CONNECTIONS)
    listening = asyncio.create_task(http.serve([listener]))
    log.info("listening", status=listener.getsockname()[1])
    try:
        made = await _made(host, port, stopped)
        if made is not None:
            service, following = made
            page.service, page.following = service, following
            if service is not None:
                log.info("loading", url=service.url, model=service.config.served_name)
                await service.serve(stopped, QUIET_SECONDS)
            if following is not None:
                log.info("following", ordinal=following.membership.ordinal, leader=following.membership.host)
                await following.serve(stopped)
    finally:
        http.should_exit = True
        await listening


Work = tuple["Service | None", "Following | None"]
"""What a pod does: one of the two."""


async def _made(host: str, port: int, stopped: asyncio.Event) -> Work | None:
    """The pod's work, made in a thread; None when SIGTERM comes first: then nothing waits for the thread."""
    made: asyncio.Future[Work] = asyncio.get_running_loop().create_future()

    def settle(found: Work | None, error: BaseException | None) -> None:
        if not made.done():
            made.set_result(found) if found is not None else made.set_exception(error or RuntimeError())

    def work() -> None:
        found, error = None, None
        try:
            found = make_work(host, port)
        except BaseException as caught:
            error = caught
        # The loop is gone when the pod was stopped meanwhile.
        with contextlib.suppress(RuntimeError):
            made.get_loop().call_soon_threadsafe(settle, found, error)

    threading.Thread(target=work, name="plimsoll-make", daemon=True).start()
    stopping = asyncio.create_task(stopped.wait())
    await asyncio.wait((made, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if made.done():
        return made.result()
    made.cancel()
    return None


def make_work(host: str, port: int) -> Work:
    """Reads the manifest and the checkpoint's headers. A pod of a group whose ordinal is above 0 follows.

    Raises PlimsollError where they cannot be served.
    """
    from msgspec.structs import replace

    from plimsoll.api.group import GROUP_KEY
    from plimsoll.api.manifest import parse_manifest
    from plimsoll.checkpoint.contents import ENVIRONMENT, refuse_changed
    from plimsoll.checkpoint.open import open_checkpoint
    from plimsoll.checkpoint.sources import resolve
    from plimsoll.runtime.config import from_deployment
    from plimsoll.runtime.engine.group.curve import read_secret
    from plimsoll.runtime.engine.group.membership import from_environment
    from plimsoll.runtime.server.following import Following
    from plimsoll.runtime.server.service import Service

    text = os.environ.get(MANIFEST)
    if not text:
        raise SpecError("is not set", field=MANIFEST, fix="It holds the ModelDeployment, as JSON")
    deployment = parse_manifest(text, MANIFEST)
    source = deployment.spec.model.source
    if not source.startswith("file://"):
        raise SpecError("a pod opens what is mounted", field="spec.model.source", value=source, fix="Give file://PATH")
    path = resolve(source)
    contents = os.environ.get(ENVIRONMENT)
    refuse_changed(path, contents)
    wanted = os.environ.get(DIGEST)
    if wanted:
        _refuse_another(path, wanted)
    draft = deployment.spec.serving.draft
    if draft is not None and not draft.source.startswith("file://"):
        field = "spec.serving.draft.source"
        raise SpecError("a pod opens what is mounted", field=field, value=draft.source, fix="Give file://PATH")
    nodes = deployment.spec.parallelism.nodes
    membership = None if nodes == 1 else from_environment(nodes)
    follows = membership is not None and membership.ordinal > 0
    # The leader runs all of a draft, and alone has its files.
    beside = None if draft is None or follows else resolve(draft.source)
    engine, server = from_deployment(deployment, path, draft=beside, host=host, port=port)
    engine = replace(engine, contents=contents)
    checkpoint = open_checkpoint(path)
    secret = b"" if membership is None else read_secret(membership.key_file, GROUP_KEY)
    if membership is None or membership.ordinal == 0:
        return Service(engine, server, checkpoint, patient=False, membership=membership), None
    return None, Following(engine, membership, secret, checkpoint.digest(), server.drain_timeout)


def _refuse_another(folder: Path, digest: str) -> None:
    """Reads every file once, which the weights' loading would do anyway.

    Raises CheckpointError where what lies in `folder` is not, to the byte, what the deployment was accepted with.
    """
    from plimsoll.api.errors import CheckpointError, SourceChangedError
    from plimsoll.checkpoint.quantized.manifest import verify

    try:
        found = verify(folder)
    except CheckpointError as error:
        if error.message.startswith("cannot be read"):
            raise
        raise SourceChangedError(error.message, field=error.field, value=error.value, fix=error.fix) from None
    if found.digest != digest:
        raise SourceChangedError(
            f"is not the checkpoint that was accepted, {digest}", field=str(folder), value=found.digest,
            fix="Give each quantization job an output of its own",
        )  # fmt: skip


def _memory_words() -> str:
    """A killed engine does not know by whom; the kernel does."""
    from plimsoll.api.quantity import format_bytes
    from plimsoll.runtime.machine.cgroup import memory_kills, memory_limit

    limit = memory_limit()
    if limit is None or not memory_kills():
        return ""
    return f". The kernel has killed a process of this container: memory ran out, the limit is {format_bytes(limit)}"


def _process_began() -> float:
    """time.monotonic() of this process's start."""
    import psutil

    return time.monotonic() - max(0.0, time.time() - psutil.Process().create_time())
