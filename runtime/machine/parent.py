"""A process that ends when its parent does."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""As <linux/prctl.h> has it."""


def die_with_parent(parent: int) -> None:
    """Has the kernel kill this process, stopped or not, when the thread that started it ends (prctl(2)).

    Ends this process at once where `parent`, a process id, is gone already: the kernel gives no signal then. Linux
    only; elsewhere nothing happens.

    Raises OSError where the kernel refuses.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(1)
