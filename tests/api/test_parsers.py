"""Names of parsers: ours, what other servers call them, and what is none."""

import pytest

from plimsoll.api.errors import SpecError
from plimsoll.api.parsers import (
    REASONING_PARSERS,
    TOOL_PARSERS,
    reasoning_parser_name,
    tool_parser_name,
)


@pytest.mark.parametrize(
    ("given", "ours"),
    [("qwen2d5", "hermes"), ("qwen3", "hermes"), ("llama3", "llama3_json"), ("QWEN3_XML", "qwen3_coder"),
     ("llama4_pythonic", "pythonic"), ("phi4_mini_json", "phi4_mini"), ("glm47", "glm45"), ("none", "none")],
)  # fmt: skip
def test_other_servers_names_are_understood(given: str, ours: str) -> None:
    assert tool_parser_name(given, "--tool-call-parser") == ours


def test_every_name_of_another_server_means_one_of_ours() -> None:
    from plimsoll.api import parsers

    assert set(parsers._TOOL_NAMES.values()) <= set(TOOL_PARSERS)
    assert set(parsers._REASONING_NAMES.values()) <= set(REASONING_PARSERS)


def test_a_name_that_is_none_is_refused_with_all_that_are() -> None:
    with pytest.raises(SpecError, match=r"--reasoning-parser: must be auto, none or one of cohere.*found 'deep'"):
        reasoning_parser_name("deep", "--reasoning-parser")
