"""A worker process of a job (`crew.py`): computes its share of each task and answers, until the job is gone."""

import resource
import socket
import sys

import torch

from plimsoll.api.printable import printable
from plimsoll.quantjob.link import Link
from plimsoll.quantjob.workers import Workers
from plimsoll.runtime.machine.heap import return_freed_memory
from plimsoll.runtime.machine.parent import die_with_parent


def main() -> None:
    """SOCKET PARENT THREADS DEVICE: a descriptor, a process id, a number, what torch calls it."""
    descriptor, parent, threads = map(int, sys.argv[1:4])
    die_with_parent(parent)
    device, workers = torch.device(sys.argv[4]), Workers(threads)
    if device.type == "cuda":
        # Else what CUDA allocates by itself would lie on the first device.
        torch.cuda.set_device(device)
    unit = 1 if sys.platform == "darwin" else 1024
    try:
        with torch.inference_mode():
            link = Link(socket.socket(fileno=descriptor), device)
            while True:
                task, units = link.receive()
                link.send((task(units, workers), unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
                del task, units
                return_freed_memory()
    except (EOFError, ConnectionError):
        # The job has closed the socket: it is done.
        pass
    except Exception as error:
        # The job computes this share by other means, and there meets what is wrong with it, if anything is.
        sys.exit(printable(f"worker: {type(error).__name__}: {error}"))


if __name__ == "__main__":
    main()
