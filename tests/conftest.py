"""Shared by every area: the real model. Fixtures of one area live in tests/support/."""

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx._transports.default as httpx_transports
import hypothesis
import hypothesis.internal.conjecture.providers as hypothesis_providers
import pytest

from plimsoll.cli import demo_model
from tests.support.longest import longest_first
from tests.support.quiet import own_logging

ROOT = Path(__file__).resolve().parent.parent

# How long an example takes says more about the machine than about the code. The same tree gets the same examples, so
# that a run which passed passes again; `--hypothesis-profile search` looks for new ones.
SETTINGS = hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("search", SETTINGS)
hypothesis.settings.register_profile("plimsoll", SETTINGS, derandomize=True)
hypothesis.settings.load_profile("plimsoll")
# It also draws numbers and texts from the modules that a worker has loaded: they depend on which tests ran before.
if hasattr(hypothesis_providers, "is_local_module_file"):
    hypothesis_providers.is_local_module_file = lambda path: False

# Reading the certificates of a new client takes 30 ms, and most clients here speak plain HTTP to a server of their own.
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
_ssl_context = functools.cache(lambda given, verify, cert, trust: _read_certificates(verify, cert, trust))
if hasattr(httpx_transports, "create_ssl_context"):
    _read_certificates = httpx_transports.create_ssl_context
    httpx_transports.create_ssl_context = lambda verify=True, cert=None, trust_env=True: _ssl_context(
        tuple(map(os.environ.get, _CERTIFICATES)), verify, cert, trust_env
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Workers take files in this order; `--no-loadscope-reorder` keeps xdist from an order of its own."""
    items[:] = longest_first(ROOT / "tests", items)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Each test leaves logging as it found it, and fails where a line could not be logged."""
    with own_logging() as failed:
        yield
    assert not failed, f"could not be logged: {failed}"


@pytest.fixture(autouse=True, scope="module")
def quiet_module() -> Iterator[None]:
    """The same for what a module's own fixtures set up, and for what their threads log between two tests."""
    with own_logging() as failed:
        yield
    assert not failed, f"could not be logged: {failed}"


@pytest.fixture
def own_threads() -> Iterator[None]:
    """The test may change the number of threads: the next one has what was there before."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """Path of SmolLM2-135M-Instruct as GGUF: $PLIMSOLL_TEST_MODEL, or the cache folder, fetched if it is not there."""
    given = os.environ.get("PLIMSOLL_TEST_MODEL")
    if given:
        path = Path(given)
        assert demo_model.file_sha256(path) == demo_model.SHA256, f"{path} is not the demo model"
        return path
    return demo_model.fetch(ROOT / ".cache" / "plimsoll")


@pytest.fixture(scope="session")
def smollm2_transformers(smollm2_gguf: Path) -> Any:
    """SmolLM2-135M-Instruct dequantized by transformers from the same GGUF, float32, in eval mode.

    The reference of every claim about right answers; loading takes transformers many seconds, so once for all areas.
    """
    import gguf
    import torch
    from transformers import AutoModelForCausalLM

    folder, name = smollm2_gguf.parent, smollm2_gguf.name
    with pytest.MonkeyPatch.context() as patch:
        # transformers parses the file twice and makes the table of names once per tensor.
        patch.setattr(gguf, "GGUFReader", functools.cache(gguf.GGUFReader))
        patch.setattr(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map))
        return AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()
