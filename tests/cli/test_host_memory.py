"""How much host memory a second tier of cache blocks gets, in our words and in vLLM's."""

import pytest

from plimsoll.api.errors import SpecError
from plimsoll.cli.host_memory import host_bytes
from plimsoll.cli.main import main

GIB = 1 << 30


@pytest.mark.parametrize(
    ("given", "ranks", "expected"),
    [
        ((None, None, None), 2, 0),
        (("8Gi", None, None), 2, 8 * GIB),
        (("0", None, None), 2, 0),
        ((None, 4.0, None), 2, 4 * GIB),
        ((None, 0.0, None), "auto", 0),
        ((None, None, 8.0), 2, 4 * GIB),
        ((None, None, 0.5), 1, GIB // 2),
    ],
)
def test_all_spellings_are_bytes_of_each_rank(
    given: tuple[str | None, float | None, float | None], ranks: int | str, expected: int
) -> None:
    assert host_bytes(*given, ranks) == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("8Gi", 4.0, None), "--swap-space: says the same as --host-memory"),
        ((None, 4.0, 4.0), "--kv-offloading-size: says the same as --swap-space"),
        (("lots", None, None), "--host-memory: must be a quantity"),
        ((None, None, 4.0), "--kv-offloading-size: is of all ranks together, and --tp auto"),
    ],
)
def test_what_is_unclear_is_refused(given: tuple[str | None, float | None, float | None], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        host_bytes(*given, "auto")


def test_serve_refuses_it_before_anything_is_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "hf://org/nothing@main", "--host-memory", "1Gi", "--swap-space", "2"])
    assert ended.value.code == 1
    assert "--swap-space: says the same as --host-memory (found 2.0). Leave one" in capsys.readouterr().err
