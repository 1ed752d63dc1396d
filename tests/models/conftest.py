"""Any test here may change the number of threads."""

import pytest


@pytest.fixture(autouse=True)
def _threads(own_threads: None) -> None:
    pass
