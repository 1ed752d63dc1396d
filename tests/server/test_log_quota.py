"""A flood of lines is cut to a rate, level by level, and counted."""

import logging

import pytest
import structlog

from plimsoll.runtime.server import log_quota
from plimsoll.runtime.server.log_quota import BURST, RATE, LineQuota
from tests.support.endpoint import eventually


class Time:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def line(level: int = logging.INFO, name: str = "plimsoll.server") -> logging.LogRecord:
    return logging.LogRecord(name, level, "", 0, "request", None, None)


def test_a_flood_is_cut_to_a_rate_and_hides_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LineQuota, "report", lambda self: None)
    clock = Time()
    quota = LineQuota(clock)
    assert sum(quota.filter(line()) for _ in range(10_000)) == BURST
    assert quota.filter(line(logging.ERROR))
    for seconds in range(1, 6):
        clock.now += 1
        assert sum(quota.filter(line()) for _ in range(1000)) == RATE, seconds
    clock.now += 3600
    assert sum(quota.filter(line()) for _ in range(10_000)) == BURST
    assert all(quota.filter(line(logging.WARNING, log_quota.REPORTER)) for _ in range(2000))


def test_what_was_dropped_is_counted_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_quota, "REPORT_SECONDS", 0.01)
    with structlog.testing.capture_logs() as logs:
        quota = LineQuota(Time())
        kept = sum(quota.filter(line()) for _ in range(3000)) + sum(
            quota.filter(line(logging.ERROR)) for _ in range(1001)
        )
        eventually(lambda: sum(sum(entry["lines"].values()) for entry in logs) == 4001 - kept)
    assert {entry["log_level"] for entry in logs} == {"warning"}
    assert sum(entry["lines"].get("error", 0) for entry in logs) == 1
