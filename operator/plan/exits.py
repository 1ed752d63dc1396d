"""How a container ended, in words: the exit code with the signal behind it, how often, and its last words."""

import signal

from plimsoll.operator.snapshot import Container

#: By the shell's convention, 128 and the number of the signal.
_SIGNALLED = 128
_MEANS = {
    "SIGKILL": "killed from outside: by the kernel for memory, or by the kubelet after a failed liveness probe",
    "SIGSEGV": "a fault in native code",
    "SIGBUS": "memory that is mapped and not there: a file that shrank, or /dev/shm that is full",
    "SIGILL": "an instruction that the node's processor does not have",
    "SIGABRT": "the process gave up",
    "SIGTERM": "it was asked to end",
}
_CODES = {126: "its command cannot be run", 127: "its command is not there", 0: "though it should run on"}


def ended(container: Container) -> str | None:
    """`exited with 139 (SIGSEGV, a fault in native code), 1 restart`; None for a container that never ended."""
    now = container.state == "terminated"
    code = container.exit_code if now else container.last_exit_code
    if code is None:
        return None
    reason = container.reason if now else container.last_reason
    words = f"exited with {_named(code, reason)}"
    if container.last_ran >= 60.0:
        words += f" after {container.last_ran / 60:.0f} minutes"
    count = container.restarts
    return f"{words}, {count} restart{'' if count == 1 else 's'}" if count else words


def _named(code: int, reason: str) -> str:
    if reason == "OOMKilled":
        return f"{code} (OOMKilled)"
    if code in _CODES:
        return f"{code} ({_CODES[code]})"
    try:
        name = signal.Signals(code - _SIGNALLED).name
    except ValueError:
        return str(code)
    return f"{code} ({name}, {_MEANS[name]})" if name in _MEANS else f"{code} ({name})"
