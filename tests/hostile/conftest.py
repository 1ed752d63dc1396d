"""A tokenizer and an API server for the surfaces that need one."""

from pathlib import Path

import pytest

from tests.operator.shell.conftest import api, cluster, metrics, naps
from tests.support.checkpoints import write_tokenizer

__all__ = ["api", "cluster", "metrics", "naps", "tokenizer_folder"]


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tokenizer.json of 320 tokens, and ChatML's template."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return folder
