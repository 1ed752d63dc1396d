"""Options of the library: a wrong one is named before anything is loaded."""

from pathlib import Path
from typing import Any

import pytest

from plimsoll.api.errors import SpecError
from plimsoll.runtime.config import EngineConfig, engine_config


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_runing": 4}, "max_runing: unknown option. Did you mean max_running?"),
        ({"temperature": 1.0}, "temperature: unknown option. Known: model, precision"),
        ({"memory": "8Gi"}, "memory: must be int | None (found '8Gi')"),
        ({"memory": -1}, "memory: must be int, at least 1 (found -1)"),
        ({"kv_ratio": 1.5}, "kv_ratio: must be float, at most 1.0 (found 1.5)"),
        ({"kv_ratio": 0.5, "kv_cache_bytes": 1 << 20}, "kv_ratio: contradicts kv_cache_bytes, which is the whole size"),
        ({"cache_precision": "int16"}, "cache_precision: must be one of auto, float, int8, int4 (found 'int16')"),
        ({"activation_precision": "int4"}, "must be one of auto, int8, bfloat16 (found 'int4')"),
        ({"threads": 0}, "threads: must be int, at least 1 (found 0)"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size: must be int, at least 1 (found 0)"),
        ({"tensor_parallel_size": 2, "tensor": 2}, "tensor_parallel_size: means the same as tensor (found 2)"),
        ({"prefix_caching": "no"}, "prefix_caching: must be bool (found 'no')"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as caught:
        engine_config(Path("model"), **options)
    assert said in str(caught.value)


def test_a_tensor_size_may_be_spelled_as_vllm_does() -> None:
    assert engine_config(Path("model"), tensor_parallel_size=2) == EngineConfig(model="model", tensor=2)


def test_the_rest_are_defaults() -> None:
    assert engine_config(Path("model"), seed=3) == EngineConfig(model="model", seed=3)
