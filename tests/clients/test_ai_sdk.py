"""Vercel's AI SDK: its provider for compatible servers, and those for OpenAI's responses and Anthropic's messages."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import Server
from tests.clients.task import TEMPERATURE, assert_called, assert_extracted

ROUTES = ("chat", "responses", "messages")
WAYS = ("whole", "streamed")


@pytest.fixture(scope="module")
def found(server: Server, node: Path) -> dict[str, Any]:
    """What each case of ai_sdk.mjs gave; one process runs all, since starting one takes longer than a case."""
    # Node looks for modules beside the program.
    program = shutil.copy(Path(__file__).with_name("ai_sdk.mjs"), node)
    command = ["node", program, server.url, server.model, server.key]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("route", ROUTES)
def test_calls_a_tool_and_answers_with_its_result(found: dict[str, Any], route: str, way: str) -> None:
    case = found[f"{route} loop {way}"]
    assert "error" not in case, case["error"]
    assert case["reason"] == "tool-calls"
    for name, arguments in case["calls"]:
        assert_called(name, arguments)
    assert case["results"] == [f"{TEMPERATURE} degrees"] * len(case["calls"])
    assert case["calls"]
    assert case["text"]
    assert case["used"] > 0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("route", ROUTES)
def test_fills_in_a_schema(found: dict[str, Any], route: str, way: str) -> None:
    case = found[f"{route} schema {way}"]
    assert "error" not in case, case["error"]
    assert_extracted(case["person"])
