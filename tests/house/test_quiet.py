"""Nothing that a test logs comes out among the dots of another."""

import io
import logging
import sys
from collections.abc import Callable

import pytest
import structlog

from plimsoll.operator import log as operator_log
from plimsoll.runtime.server import log as server_log
from tests.support.quiet import own_logging


@pytest.mark.parametrize("configure", [lambda: server_log.configure("info"), lambda: operator_log.configure("INFO")])
def test_a_log_follows_the_standard_error_of_the_moment(
    configure: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with own_logging() as failed:
        first = io.StringIO()
        monkeypatch.setattr(sys, "stderr", first)
        configure()
        logging.getLogger("plimsoll.quiet").warning("one")
        assert "one" in first.getvalue()
        first.close()
        second = io.StringIO()
        monkeypatch.setattr(sys, "stderr", second)
        logging.getLogger("plimsoll.quiet").warning("two")
    assert failed == []
    assert "two" in second.getvalue()


def test_logging_that_a_test_sets_up_ends_with_it() -> None:
    root = logging.getLogger()
    before = ([*root.handlers], root.level, structlog.is_configured())
    with own_logging():
        server_log.configure("debug")
        assert root.level == logging.DEBUG
    assert ([*root.handlers], root.level, structlog.is_configured()) == before


def test_a_line_that_cannot_be_logged_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    closed = io.StringIO()
    closed.close()
    with own_logging() as failed:
        logging.getLogger().addHandler(logging.StreamHandler(closed))
        logging.getLogger("plimsoll.quiet").warning("lost")
    assert failed == ["plimsoll.quiet: lost: StreamHandler"]
    assert capsys.readouterr() == ("", "")
