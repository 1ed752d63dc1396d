"""Key files: what they may hold, and what a wrong key costs does not show how wrong it is."""

import hmac
from pathlib import Path

import pytest

from plimsoll.api.errors import SpecError
from plimsoll.runtime.server.auth import KeyFile

KEYS = ("key-one", "k", "a-much-longer-key-" * 20)


@pytest.mark.parametrize(
    "given", [*KEYS, "", "key-onf", "key-one ", "x" * 100_000, "key-one\nk", "schl\udcfcssel", "é"]
)
def test_every_key_is_compared_by_digests_of_one_length(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys"
    path.write_text("\n".join(KEYS))
    keys = KeyFile(str(path))
    compared: list[tuple[int, int]] = []
    real = hmac.compare_digest

    def noted(known: bytes, sent: bytes) -> bool:
        compared.append((len(known), len(sent)))
        return real(known, sent)

    monkeypatch.setattr(hmac, "compare_digest", noted)
    assert keys.allows(given) == (given in KEYS)
    # One that matches early ends nothing early, and no length of a key shows.
    assert compared == [(32, 32)] * len(KEYS)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"# no key\n"])
def test_a_file_without_keys_is_refused_by_its_path(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(SpecError) as caught:
        KeyFile(str(path))
    assert f"holds no key (found '{path}')" in str(caught.value)
