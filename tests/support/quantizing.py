"""Quantizations of tiny checkpoints on text of our own, and one that is killed again and again."""

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plimsoll.api.gate import Limits
from plimsoll.quantjob.job import Outcome, QuantizeJob
from plimsoll.quantjob.job_options import JobOptions
from plimsoll.quantjob.progress import Tracker
from plimsoll.quantjob.recipe import Recipe
from plimsoll.quantjob.tokens import TokenPlan

#: Events of the interpreter at which a file has come, gone or been opened.
FILE_EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir")


def write_text(path: Path) -> Path:
    """A few thousand tokens, no two lines alike."""
    lines = (f"{number}. The ship carried {number * 37 % 101} tons of {word}, and the line stood {number % 7} feet dry."
             for number, word in enumerate(["coal", "tea", "rope", "salt", "iron", "wheat"] * 60))  # fmt: skip
    path.write_text("\n".join(lines))
    return path


def job_options(source: Path, out: Path, text: Path, **overrides: Any) -> JobOptions:
    """Groups of 32 on 6 windows of 48 tokens; `overrides` are of `JobOptions`."""
    values: dict[str, Any] = {
        "source": source, "name": source.name, "out": out, "recipe": Recipe(group_size=32),
        "plan": TokenPlan(str(text), 6, 48, 3), "limits": Limits(), "memory": 2 << 30, "threads": 2,
    }  # fmt: skip
    return JobOptions(**(values | overrides))


def run_job(options: JobOptions, tracker: Tracker | None = None) -> Outcome:
    """The job from beginning to end, in this process."""
    return QuantizeJob(options, tracker or Tracker(), lambda note: None).run()


def contents(folder: Path) -> Mapping[str, bytes]:
    """Every file of an output."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def killed_at(options: JobOptions, event: int) -> bool:
    """Run the job in a child that kills itself at that many file events. Returns whether it was killed before its end.

    The caller must have no threads of torch's: a forked child cannot use them.
    """
    child = os.fork()
    if child == 0:
        left = event
        place = str(options.out)

        def count(name: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            if name in FILE_EVENTS and any(place in str(argument) for argument in arguments[:2]):
                left -= 1
                if left <= 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        try:
            run_job(options)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0, "the job failed"
    return False


def reached(out: Path) -> list[int]:
    """[layers that are quantized, layers the compared models have run through, windows measured] on the disk."""
    state, kept = out / ".partial" / "state.json", out / ".partial" / "evaluation"
    walked = json.loads(state.read_bytes())["layers"] if state.exists() else 0
    told = kept / "state.json"
    compared = sum(json.loads(told.read_bytes())["layers"]) if told.exists() else 0
    return [walked, compared, len(list(kept.glob("window-*.npy")))]


def main() -> None:
    """SOURCE OUT TEXT: kill at ever later file events, then let it finish. Prints what each kill left, as JSON."""
    source, out, text = map(Path, sys.argv[1:4])
    options = job_options(source, out, text)
    left: list[list[int]] = []
    step = 3
    while killed_at(options, step):
        left.append(reached(out))
        step += 4 if len(left) < 12 else 40
    print(json.dumps(left))


if __name__ == "__main__":
    main()
