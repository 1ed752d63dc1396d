"""The most memory that a process ever had."""

from pathlib import Path


def peak_bytes(pid: int) -> int | None:
    """Most resident memory that the process ever had, as the kernel keeps it; None once the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)
