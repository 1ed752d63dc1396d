"""A tiny Llama for engine tests, and the tables of kernels that run here."""

from pathlib import Path

import pytest

from tests.support.checkpoints import make_checkpoint
from tests.support.tables import float32_tables


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, 320 tokens, 256 positions, float32."""
    return make_checkpoint(tmp_path_factory.mktemp("engine") / "llama")


@pytest.fixture(scope="session", params=["torch", "native"][: len(float32_tables())])
def kernels(request: pytest.FixtureRequest) -> str:
    """Each table by the name that `EngineConfig.kernels` has for it."""
    return str(request.param)
