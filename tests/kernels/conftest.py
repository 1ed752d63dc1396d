"""Libraries of the kernels with other flags, and a number of threads that each test changes for itself alone."""

import pytest

from tests.support.libraries import Libraries, shared_folder


@pytest.fixture(autouse=True)
def _threads(own_threads: None) -> None:
    pass


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Libraries:
    return Libraries(shared_folder(tmp_path_factory, "kernels"))
