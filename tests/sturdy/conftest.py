"""One tiny model for all of this area."""

from pathlib import Path

import pytest

from tests.support.checkpoints import make_checkpoint


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with random weights: 320 tokens, 256 positions."""
    return make_checkpoint(tmp_path_factory.mktemp("sturdy") / "tiny")
