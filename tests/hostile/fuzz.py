"""New hostile input for one surface, for as long as is wanted.

`python -m tests.hostile.fuzz SURFACE [--seconds N]` changes the honest files of `seeds/SURFACE` at random. What raises
anything but an error for people, or takes more than ten seconds of processor time, is kept in `--findings` and ends
the run with status 1.
"""

import argparse
import gzip
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.support.bounded import bounded
from tests.support.mutated_bytes import mutated

Try = Callable[[bytes, str], None]
SEEDS = Path(__file__).parent / "seeds"


def datasets(folder: Path) -> Try:
    from plimsoll.api.errors import SpecError
    from plimsoll.quantjob.documents import documents

    def one(data: bytes, name: str) -> None:
        path = folder / name
        for content in (data, gzip.compress(data, 1)) if not name.endswith((".gz", ".parquet")) else (data,):
            path = path if content is data else path.with_name(f"{name}.gz")
            path.write_bytes(content)
            try:
                for _ in documents(path, "--dataset"):
                    pass
            except SpecError as error:
                if path.name not in str(error):
                    raise AssertionError("the message names no file") from error

    return one


def streams(folder: Path) -> Try:
    from plimsoll.api.errors import PlimsollError
    from tests.hostile import test_streams

    server = test_streams.Server()

    def one(data: bytes, name: str) -> None:
        server.answer = test_streams.HEAD + b"\r\n" + data
        try:
            test_streams.chatted(server)
        except PlimsollError as error:
            if len(str(error)) > 3000:
                raise AssertionError("the message is too long") from error
        assert test_streams.benched(server).error != "timeout"

    return one


SURFACES: dict[str, Callable[[Path], Try]] = {"datasets": datasets, "streams": streams}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.fuzz", description=__doc__)
    parser.add_argument("surface", choices=SURFACES)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--only", default="", help="part of the names of the seeds to change")
    parser.add_argument("--findings", type=Path, default=Path("findings"))
    options = parser.parse_args()
    seeds = [path for path in sorted((SEEDS / options.surface).iterdir()) if options.only in path.name]
    draw, cases = random.Random(time.time_ns()), 0
    with tempfile.TemporaryDirectory() as folder:
        one, end = SURFACES[options.surface](Path(folder)), time.monotonic() + options.seconds
        while time.monotonic() < end:
            seed = draw.choice(seeds)
            data = mutated(seed.read_bytes(), draw)
            cases += 1
            try:
                with bounded():
                    one(data, seed.name)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                options.findings.mkdir(exist_ok=True)
                kept = options.findings / f"{cases}-{seed.name}"
                kept.write_bytes(data)
                traceback.print_exc()
                print(f"case {cases}: {kept}", file=sys.stderr, flush=True)
                return 1
    print(f"{cases} cases, no finding", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
