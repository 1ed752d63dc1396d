"""The bar and the time left, by a clock that the test holds."""

import itertools

import pytest

from plimsoll.api.job_progress import JobProgress
from plimsoll.cli.progress_lines import Lines
from plimsoll.quantjob.progress import Tracker


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_long_step_moves_and_the_time_left_follows_the_measured_pace() -> None:
    clock = Clock()
    seen: list[JobProgress] = []
    tracker = Tracker(seen.append, clock)
    tracker.expect({"Sampling": 30.0, "Quantizing": 50.0, "Evaluating": 20.0})
    tracker.move("Sampling", 0.0, upto=0.1)
    # Ten seconds a step in place of three.
    for step in range(1, 11):
        for _ in range(5):
            clock.now += 2
            tracker.beat()
        tracker.move("Sampling", step / 10, upto=min(1.0, (step + 1) / 10))
        if step in (2, 5, 8):
            assert tracker.now.eta_seconds == pytest.approx(10 * (10 - step) + 70, rel=0.3)
    percents = [look.percent for look in seen]
    assert all(before < after for before, after in itertools.pairwise(percents[:-1]))


def test_a_log_has_a_line_after_half_a_minute_without_one(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    lines = Lines(clock)
    for second in range(0, 100, 2):
        clock.now = second
        lines(JobProgress(phase="Sampling", seconds=second, message=f"{second} of 100 tokens drawn"))
    told = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in told] == ["0", "30", "60", "90"]
