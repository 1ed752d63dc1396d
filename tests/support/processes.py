"""The processes of a server."""

import psutil


def engines(server: int) -> list[psutil.Process]:
    """Engine processes of the server with this process id."""
    children = psutil.Process(server).children()
    return [child for child in children if "plimsoll.runtime.engine.transport.process" in child.cmdline()]
