"""Rows of Parquet, decoded by a process of its own with bounded memory and time.

A few bytes of Parquet may stand for any number, and the decoder is a large library in C++: what such a file does to it
ends with that process, and is an error that names the file.

The process writes frames to its stdout: 4 bytes of length, big end first, then msgpack of `[kind, value]`. Kinds are
`names`, of a file without columns of text; `row`, a record; and `error`, what is wrong in words.
"""

import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import msgspec

from plimsoll.api.errors import SpecError
from plimsoll.quantjob.columns import columns_of

#: Bytes that decoding may take beside what the process needs to start.
MEMORY = 4 << 30
#: Seconds of processor time.
SECONDS = 600
#: Rows decoded at once.
ROWS = 32


def parquet_rows(path: Path, field: str, longest: int) -> Iterator[Mapping[str, Any] | list[str]]:
    """Records of the columns that hold text; or once, as a list, the names of the columns where none does.

    Args:
        longest: bytes of a record, at most.

    Raises:
        SpecError: the file is no Parquet, or takes more memory or time than a file of texts does.
    """
    command = [sys.executable, "-m", "plimsoll.quantjob.parquet_rows", str(path.absolute()), str(longest)]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None
    try:
        for kind, value in _frames(child.stdout, longest):
            if kind == "error":
                raise SpecError(f"is not Parquet that can be read: {value}", field=field, value=str(path))
            yield value
        code = child.wait()
        if code:
            raise SpecError(
                f"is not Parquet that can be read: {_ended(code)}", field=field, value=str(path),
                fix="Write it with smaller row groups, or as .jsonl",
            )  # fmt: skip
    finally:
        child.kill()
        child.stdout.close()
        child.wait()


def _ended(code: int) -> str:
    if code == -signal.SIGXCPU:
        return f"decoding took more than {SECONDS} seconds of processor time"
    return f"decoding ended with {signal.Signals(-code).name}" if code < 0 else f"decoding ended with status {code}"


def _frames(stream: IO[bytes], longest: int) -> Iterator[tuple[str, Any]]:
    decode = msgspec.msgpack.Decoder(tuple[str, Any]).decode
    while len(head := stream.read(4)) == 4:
        data = stream.read(min(int.from_bytes(head, "big"), 2 * longest))
        try:
            yield decode(data)
        except msgspec.DecodeError:
            return


def _write(kind: str, value: Any) -> int:
    """Bytes of the frame. Values that msgpack has no form for are written as the name of their type."""
    data = msgspec.msgpack.encode((kind, value), enc_hook=lambda other: [type(other).__name__])
    sys.stdout.buffer.write(len(data).to_bytes(4, "big") + data)
    return len(data)


def _decode(path: str, longest: int) -> None:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as table:
        names = table.schema_arrow.names
        wanted = columns_of(names)
        if not wanted:
            _write("names", [name[:40] for name in names[:12]])
            return
        row = 0
        for batch in table.iter_batches(batch_size=ROWS, columns=wanted, use_threads=False):
            for index in range(batch.num_rows):
                row += 1
                part = batch.slice(index, 1)
                if part.get_total_buffer_size() and part.nbytes > longest:
                    raise ValueError(f"row {row} is longer than {longest >> 20} MiB")
                _write("row", part.to_pylist()[0])


def main(path: str, longest: str) -> int:
    """The process: decodes until the file or its reader ends."""
    import pyarrow

    pyarrow.set_memory_pool(pyarrow.system_memory_pool())
    held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (held + MEMORY, held + MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 10))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        _decode(path, int(longest))
    except BrokenPipeError:
        return 0
    except MemoryError:
        _write("error", f"decoding takes more than {MEMORY >> 20} MiB of memory")
    except (pyarrow.ArrowException, UnicodeDecodeError, ValueError, OSError) as error:
        lines = str(error).strip().splitlines()
        _write("error", lines[0][:200] if lines else type(error).__name__)
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
