"""A store and some checkpoints for every test that fetches or inspects."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.checkpoints import make_checkpoint, make_gguf, make_model
from tests.support.s3 import Store, running_s3


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder in several shards, with weights that outweigh its headers."""
    path = tmp_path_factory.mktemp("made") / "tiny"
    return make_checkpoint(path, vocab_size=4096, hidden_size=256, intermediate_size=512, shard_bytes=3_000_000)


@pytest.fixture(scope="session")
def folder_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="session")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file of two block types."""
    model = make_model("LlamaForCausalLM", vocab_size=320, hidden_size=512, intermediate_size=2048)
    return make_gguf(tmp_path_factory.mktemp("made") / "tiny-Q8_0.gguf", model, block_type="Q8_0")


@pytest.fixture(scope="session")
def session_store() -> Iterator[Store]:
    with running_s3() as store:
        yield store


@pytest.fixture
def store(session_store: Store) -> Store:
    """The one service, behaving well and having been asked nothing."""
    fresh = Store(url=session_store.url)
    for name, value in vars(fresh).items():
        setattr(session_store, name, value)
    return session_store
