"""Texts for calibration: records as lines, and all tokens of a corpus."""

import json
from typing import Any

import pytest

from plimsoll.api.errors import SpecError
from plimsoll.quantjob.data import Corpus


def lines(*records: Any) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def stream(corpus: Corpus) -> list[int]:
    """All tokens of it, from the one window that holds them."""
    with pytest.raises(SpecError) as caught:
        corpus.head(1, 1 << 40)
    count = int(str(caught.value).partition("holds ")[2].split()[0])
    return corpus.head(1, count).windows[0].tolist()
