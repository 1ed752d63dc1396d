"""What `serve` and `up` print once a model is ready."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from plimsoll.cli.local import announce
from tests.support.checkpoints import make_checkpoint
from tests.support.engines import make_engine


@pytest.mark.parametrize(("precision", "said"), [("float", "tokens · float32"), ("int4", "tokens at int4 · float32")])
def test_the_cache_is_shown_with_the_precision_of_its_codes(tmp_path: Path, precision: Any, said: str) -> None:
    engine = make_engine(make_checkpoint(tmp_path / "model"), cache_precision=precision)
    screen = Console(record=True, width=200)
    service = SimpleNamespace(info=engine.ready, config=SimpleNamespace(served_name="m"), url="http://localhost/v1")
    announce(cast(Any, service), screen)
    engine.close()
    assert said in screen.export_text()
