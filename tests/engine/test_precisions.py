"""Precisions of an engine: what auto takes, bytes foretold and observed."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from plimsoll.api.budget import CONTEXT_BYTES
from plimsoll.api.errors import DoesNotFitError, SpecError
from plimsoll.api.precision import HeldCache
from plimsoll.checkpoint import open_checkpoint
from plimsoll.checkpoint.quantized.manifest import Manifest, hash_files, write_manifest
from plimsoll.runtime.config import EngineConfig
from plimsoll.runtime.engine.worker.loading import Loaded, load, prepare
from plimsoll.runtime.engine.worker.memory import find_device, find_dtype, plan_memory
from plimsoll.runtime.kernels.selection import select
from tests.support import quantized
from tests.support.checkpoints import make_checkpoint, make_gguf, make_model

MIB = 1 << 20
SMALL: dict[str, Any] = {"max_model_len": 64, "max_running": 2, "max_batched_tokens": 64, "kv_cache_bytes": MIB}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """4 and 8 bits, and the floats that the 4 bits stand for."""
    root = tmp_path_factory.mktemp("precisions")
    wide = {"hidden_size": 1024, "intermediate_size": 3072, "tokenizer": False, "vocab_size": 320}
    four, floats = quantized.make_quantized(root / "four", quantized.AWQ, **wide)
    eight, _ = quantized.make_quantized(root / "eight", quantized.COMPRESSED_8, **wide)
    return {"four": four, "eight": eight, "floats": floats}


def loaded(folder: Path, **options: Any) -> Loaded:
    return load(prepare(EngineConfig(model=str(folder), **(SMALL | {"memory": 2048 * MIB} | options))))


@pytest.mark.parametrize(
    ("stored", "precision", "taken"),
    [
        ("four", "auto", "w4a16"), ("four", "w4a16", "w4a16"), ("four", "bfloat16", "bfloat16"),
        ("eight", "auto", "w8a16"), ("eight", "float32", "float32"), ("floats", "auto", "bfloat16"),
        ("floats", "w4a16", "w4a16"), ("floats", "w8a16", "w8a16"),
    ],
)  # fmt: skip
def test_bytes_observed_are_those_foretold(
    folders: dict[str, Path], kernels: str, stored: str, precision: str, taken: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", logger="plimsoll"):
        found = loaded(folders[stored], precision=precision, kernels=kernels)
    # Codes without kernels for them cost time, and nobody should have to find out.
    assert ("slower than bfloat16 here" in caplog.text) == (kernels == "torch" and taken in ("w4a16", "w8a16"))
    found.clock.seconds["warmup"] = 0.0
    ready = found.ready()
    assert ready.precision == taken
    assert ready.cache_dtype == ("float32" if taken == "float32" else "bfloat16")
    assert ready.observed["weights"] == ready.predicted["weights"]


def test_auto_takes_fewer_bits_where_memory_is_short_and_says_so(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    device = find_device("cpu")
    dtype = find_dtype("auto", device)
    table = select(device, dtype)
    facts = open_checkpoint(folders["floats"]).facts

    def plan(memory: int, precision: str = "auto") -> Any:
        config = EngineConfig(model="", precision=precision, memory=memory, **SMALL)
        return plan_memory(config, facts, table, dtype)

    needs = {name: _needs(plan(4096 * MIB, name)) for name in ("bfloat16", "w8a16", "w4a16")}
    assert needs["bfloat16"] > needs["w8a16"] > needs["w4a16"] > CONTEXT_BYTES["cpu"]
    for memory, taken, passed in (
        (needs["bfloat16"], "bfloat16", []),
        (needs["bfloat16"] - 1, "w8a16", ["precision bfloat16"]),
        (needs["w8a16"] - 1, "w4a16", ["precision bfloat16", "precision w8a16"]),
    ):
        found = plan(memory)
        # An int8 cache of as many bytes fits no better.
        options = [item.option for item in found.rejected if not item.option.endswith(", cache int8")]
        assert (found.precision, options) == (taken, passed)
    with pytest.raises(DoesNotFitError, match="needs"):
        plan(needs["w4a16"] - 1)
    with caplog.at_level("INFO", logger="plimsoll"):
        served = loaded(folders["floats"], memory=needs["bfloat16"] - 1)
    assert served.plan.precision == "w8a16"
    assert "passed over precision bfloat16: needs" in caplog.text


def test_auto_holds_the_cache_in_int8_where_floats_do_not_hold_what_is_asked_for(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    options = {"kv_cache_bytes": None, "max_model_len": 256, "block_size": 16}
    floats = loaded(folders["floats"], **options, memory=512 * MIB)
    assert (floats.plan.cache_precision, floats.runner.cache.held) == ("float", "bfloat16")
    # One block less than a request takes in floats.
    short = {**options, "kv_cache_bytes": floats.runner.cache.nbytes // floats.runner.cache.num_blocks * 15}
    assert "for the cache: with floats" not in caplog.text
    with caplog.at_level("INFO", logger="plimsoll"):
        found = loaded(folders["floats"], **short)
    assert (found.plan.precision, found.plan.cache_precision, found.runner.cache.held) == ("bfloat16", "int8", "int8")
    assert found.plan.num_blocks >= 16
    assert "auto takes int8 for the cache" in caplog.text
    assert "passed over precision bfloat16: needs" in caplog.text
    followers = prepare(EngineConfig(model=str(folders["floats"]), **(SMALL | {"memory": 2048 * MIB} | short)))
    assert followers.of_followers().cache_precision == "int8"


def _needs(plan: Any) -> int:
    return int(sum(value for name, value in plan.predicted.items() if name not in ("total", "headroom")))


def test_codes_of_other_bits_are_refused_before_memory_is_taken(folders: dict[str, Path]) -> None:
    with pytest.raises(SpecError, match=r"compressed-tensors of 8 bits.*Use auto or w8a16"):
        loaded(folders["eight"], precision="w4a16")


@pytest.mark.parametrize(("built_for", "words"), [(None, "built for CPUs"), ("13.0", "nvidia-smi")])
def test_a_gpu_that_is_not_there_is_refused_with_what_to_look_at(
    monkeypatch: pytest.MonkeyPatch, built_for: str | None, words: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    with pytest.raises(SpecError, match=words):
        find_device("cuda")
    with pytest.raises(SpecError, match="One of cpu"):
        find_device("tpu")


def test_blocks_of_a_gguf_are_never_rounded_again_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model("LlamaForCausalLM", hidden_size=1024, intermediate_size=3072, num_hidden_layers=2)
    path = make_gguf(tmp_path / "blocks.gguf", model, block_type="Q5_1")
    with caplog.at_level("WARNING", logger="plimsoll"):
        assert loaded(path).plan.precision == "w8a16"
        assert "a second time" not in caplog.text
        four = loaded(path, precision="w4a16")
    assert "w4a16 rounds the file's Q5_1 blocks a second time" in caplog.text
    with pytest.raises(DoesNotFitError, match="Q5_1 blocks rounded again"):
        loaded(path, memory=_needs(four.plan) + MIB)


def test_a_context_that_memory_cuts_short_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_checkpoint(tmp_path / "long", max_position_embeddings=2048, tokenizer=False)
    with caplog.at_level("WARNING", logger="plimsoll"):
        found = loaded(folder, precision="float32", max_model_len=None, block_size=64, kv_cache_bytes=640 * 512)
    assert found.plan.model_len == 640
    assert caplog.text.count("the context is 640 tokens of the 2048 that the model was trained for") == 1
    with pytest.raises(DoesNotFitError, match="a cache of 512 tokens in int8 takes"):
        loaded(folder, precision="float32", max_model_len=None, block_size=64, kv_cache_bytes=64 * 512)


def test_a_cache_that_its_own_report_measured_as_bad_is_warned_of(
    folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "measured"
    shutil.copytree(folders["floats"], folder)
    caches = [{"precision": "int8", "increase": 0.0002}, {"precision": "int4", "increase": 0.052}]
    write_manifest(folder, Manifest(hash_files(folder, ["config.json"]), "none", evaluation={"caches": caches}))
    for held, warned in (("int8", False), ("int4", True)):
        caplog.clear()
        with caplog.at_level("WARNING", logger="plimsoll"):
            loaded(folder, cache_precision=held)
        assert ("measured on this checkpoint, 5.2 % more perplexity" in caplog.text) == warned
        assert ("loses quality" in caplog.text) == warned


@pytest.mark.parametrize(("bias", "warned"), [(1.0, set()), (3000.0, {"int8", "int4"})])
def test_key_biases_are_warned_of_by_their_size(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, bias: float, warned: set[HeldCache]
) -> None:
    folder = make_checkpoint(tmp_path / "qwen2", "Qwen2ForCausalLM", tokenizer=False)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.self_attn.k_proj.bias"][3] = bias
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    caches: tuple[HeldCache, ...] = ("float", "int8", "int4")
    for held in caches:
        caplog.clear()
        with caplog.at_level("WARNING", logger="plimsoll"):
            loaded(folder, cache_precision=held)
        assert ("the range of the key biases is" in caplog.text) == (held in warned)
        assert "have biases" not in caplog.text
