"""What is foreseen of this machine without importing torch: what its libraries take."""

from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch

from plimsoll.api.budget import CONTEXT_BYTES, Load, budget
from plimsoll.api.device import CUDA_BUILD_BYTES
from plimsoll.api.errors import DoesNotFitError
from plimsoll.api.job_budget import PROCESS_BYTES
from plimsoll.checkpoint import open_checkpoint
from plimsoll.quantjob.preflight import preflight
from plimsoll.quantjob.recipe import Recipe
from plimsoll.runtime.config import EngineConfig
from plimsoll.runtime.engine.worker.loading import load, prepare
from plimsoll.runtime.kernels import forecast
from plimsoll.runtime.machine import processor
from tests.support.checkpoints import make_checkpoint

GIB = 1 << 30


def installed(monkeypatch: pytest.MonkeyPatch, folder: Path, version: str | None) -> None:
    """A torch whose version.py is this text; None: no torch."""
    found = None
    if version is not None:
        (folder / "version.py").write_text(version)
        found = ModuleSpec("torch", None, origin=str(folder / "__init__.py"))
    monkeypatch.setattr(forecast, "find_spec", {"torch": found}.get)
    monkeypatch.setattr(forecast, "_built_for_cuda", forecast._built_for_cuda.__wrapped__)


CUDA = "from typing import Optional\n__version__ = '2.13.0+cu130'\ncuda: Optional[str] = '13.0'\n"


def test_the_torch_that_is_installed_is_known_for_what_it_is() -> None:
    assert bool(forecast.foreseen_libraries("cpu")) == (torch.version.cuda is not None)


@pytest.mark.parametrize(
    ("version", "kind", "more"),
    [
        (CUDA, "cpu", CUDA_BUILD_BYTES),
        (CUDA, "cuda", 0),  # a card holds none of it
        ("cuda = None\n", "cpu", 0),
        (None, "cpu", 0),
    ],
)
def test_a_torch_for_cuda_weighs_on_a_cpu_alone(
    version: str | None, kind: forecast.DeviceKind, more: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    installed(monkeypatch, tmp_path, version)
    device = forecast.foreseen_device(kind, 8 * GIB)
    assert device.libraries == forecast.foreseen_libraries(kind) == more
    facts = open_checkpoint(make_checkpoint(tmp_path / "model", tokenizer=False)).facts
    assert budget(facts, device, Load(max_length=128)).context == CONTEXT_BYTES[kind] + more


def test_engine_and_job_count_it_and_say_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    installed(monkeypatch, tmp_path, CUDA)
    folder = make_checkpoint(tmp_path / "model", tokenizer=False)
    found = load(prepare(EngineConfig(model=str(folder), memory=GIB, kv_cache_bytes=1 << 20, max_model_len=128)))
    assert found.plan.predicted["context"] == CONTEXT_BYTES["cpu"] + CUDA_BUILD_BYTES
    assert "built for CUDA, which takes 288.0 MiB more" in caplog.text
    assert forecast.CPU_BUILD_COMMAND in caplog.text
    facts = open_checkpoint(folder).facts
    recipe = Recipe(method="rtn", bits=4, group_size=32)
    ready = preflight(facts, recipe, 4, 64, 2, memory=GIB, batch=1, threads=1)
    assert any("built for CUDA" in note for note in ready.notes)
    with pytest.raises(DoesNotFitError, match="built for CUDA"):
        preflight(facts, recipe, 4, 64, 2, memory=PROCESS_BYTES + CUDA_BUILD_BYTES, batch=1, threads=1)


@pytest.mark.parametrize(
    ("flags", "panel", "faster"),
    [
        ("avx2 avx512f avx512_vnni avx512_bf16", 32, True),
        ("avx2 avx512f avx512_vnni avx512_bf16 amx_tile amx_bf16 amx_int8", 32, False),
        ("avx2 avx512f avx512bw", 32, True),
        ("avx avx2 fma", 16, True),
        ("avx fma", 16, False),
        ("avx2 avx512f avx512_vnni", 16, True),  # a library that was built for AVX2
        ("fp asimd asimddp", 8, True),
        ("fp asimd bf16", 8, False),
        ("", 8, False),
    ],
)
def test_rows_of_bytes_are_faster_with_avx2_or_sdot_and_without_amx(
    flags: str, panel: int, faster: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(f"{'Features' if 'asimd' in flags else 'flags'}\t: {flags}\n")
    monkeypatch.setattr(processor, "CPU_INFO", info)
    assert processor.multiplies_bytes(panel) == faster
    assert processor.multiplies_bf16() == ("bf16" in flags)
