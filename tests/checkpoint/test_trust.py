"""Certificate authorities of a cluster are trusted beside the usual ones."""

import os
import ssl
from pathlib import Path

import certifi
import pytest

from plimsoll.api.errors import SpecError
from plimsoll.checkpoint import trust

READ = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in READ:
        # Set and taken away again, so that what install() writes is undone afterwards.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_the_usual_authorities_stay_beside_the_extra_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = Path(certifi.where()).read_text(encoding="ascii", errors="replace")
    end = "-----END CERTIFICATE-----"
    extra = tmp_path / "ca.crt"
    extra.write_text(usual[usual.index("-----BEGIN") : usual.index(end)] + end + "\n")
    monkeypatch.setenv(trust.EXTRA, str(extra))
    trust.install()
    [together] = {os.environ[name] for name in READ}
    assert Path(together).read_text().count(end) == usual.count(end) + 1
    ssl.create_default_context(cafile=together)
    Path(together).unlink()


@pytest.mark.parametrize("text", [None, "", "no certificate"])
def test_a_file_that_holds_none_is_refused_by_its_field(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        (tmp_path / "ca.crt").write_text(text)
    monkeypatch.setenv(trust.EXTRA, str(tmp_path / "ca.crt"))
    with pytest.raises(SpecError, match=r"spec\.pod\.caBundle"):
        trust.install()
    assert not set(READ) & set(os.environ)


def test_nothing_changes_where_nothing_is_asked() -> None:
    trust.install()
    assert not set(READ) & set(os.environ)
