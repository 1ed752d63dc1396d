"""Libraries of the kernels with other flags; and a test may change the number of threads for itself alone."""

from collections.abc import Iterator

import pytest
import torch

from tests.support.libraries import Libraries, shared_folder


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Libraries:
    return Libraries(shared_folder(tmp_path_factory, "kernels"))
