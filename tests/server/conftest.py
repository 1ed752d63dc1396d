"""One server for each model; starting one takes seconds, a request takes milliseconds."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.checkpoints import make_checkpoint
from tests.support.endpoint import Endpoint, serving
from tests.support.thinker import make_thinker


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with random weights: 320 tokens, 256 positions."""
    return make_checkpoint(tmp_path_factory.mktemp("served") / "tiny")


@pytest.fixture(scope="session")
def tiny(tiny_checkpoint: Path) -> Iterator[Endpoint]:
    with serving(tiny_checkpoint) as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def keyed(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """The same, strict and with the keys `secret` and `other`."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("secret\nother\n")
    with serving(tiny_checkpoint, api_keys_file=str(keys), strict=True) as endpoint:
        yield Endpoint(endpoint.service, "secret")


@pytest.fixture(scope="session")
def smol(smollm2_gguf: Path) -> Iterator[Endpoint]:
    """The real model in bfloat16."""
    settings = {"precision": "bfloat16", "kv_cache_bytes": 64 << 20, "block_size": 64, "max_model_len": 2048}
    with serving(smollm2_gguf, settings, served_name="smol") as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """A model that thinks and answers as `make_thinker` says."""
    with serving(make_thinker(tmp_path_factory.mktemp("thinks") / "thinker"), served_name="thinker") as endpoint:
        yield endpoint
