"""`plimsoll pod`: what runs in a model pod. The operator writes its manifest; people use `up`."""

import logging
import os
import sys
from typing import Annotated

import typer


def pod(
    host: Annotated[str, typer.Option(help="Address to listen on; :: is all, of IPv4 too.")] = "::",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the OpenAI endpoint; 0 takes a free one.")] = 8000,
    status_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of /live, /ready, /status, /metrics and /drain; 0 takes a free one.")
    ] = 8001,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """For containers: serve the ModelDeployment in $PLIMSOLL_DEPLOYMENT, with a status port for probes."""
    from plimsoll.runtime.server import log
    from plimsoll.runtime.server.pod import run_pod

    log.configure(log_level)
    status = run_pod(host, port, status_port)
    # A thread may still be importing for a service that is no longer needed; nothing waits for it.
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)
