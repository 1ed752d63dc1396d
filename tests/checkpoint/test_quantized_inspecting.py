"""A quantized checkpoint inspected from far away: the same facts from headers alone, the same refusals."""

import json
import signal
from pathlib import Path

import pytest

from plimsoll.api.errors import CheckpointError
from plimsoll.api.inspection import Inspection
from plimsoll.checkpoint.inspecting import inspect_remote, inspect_source
from plimsoll.checkpoint.open import open_checkpoint
from plimsoll.checkpoint.quantized.manifest import Manifest, hash_files, write_manifest
from plimsoll.cli.main import main
from tests.checkpoint.test_inspecting import Held
from tests.support import quantized


def held(folder: Path) -> Held:
    return Held({path.name: path.read_bytes() for path in folder.iterdir()})


@pytest.mark.parametrize("form", quantized.ALL)
def test_its_facts_come_from_headers_alone(tmp_path: Path, form: str) -> None:
    folder, _ = quantized.make_quantized(
        tmp_path / "model", quantized.ALL[form], tokenizer=False, hidden_size=256, intermediate_size=2048
    )
    remote = held(folder)
    found = inspect_remote(remote)
    assert found.facts == open_checkpoint(folder).facts
    assert found.facts.quantization == quantized.ALL[form]
    assert sum(remote.reads) < (folder / "model.safetensors").stat().st_size / 4
    assert Inspection.decode(found.encode()) == found
    assert found.digest == inspect_source(str(folder)).digest


def test_a_failed_gate_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    folder, _ = quantized.make_quantized(tmp_path / "model", quantized.AWQ, tokenizer=False)
    files = hash_files(folder, ["config.json", "model.safetensors"])
    write_manifest(folder, Manifest(files, "passed"))
    assert inspect_remote(held(folder)).digest == inspect_source(str(folder)).digest
    write_manifest(folder, Manifest(files, "failed", "perplexity rose by 12.3 %, 2 % are allowed"))
    with pytest.raises(CheckpointError, match=r"failed its gate: perplexity rose by 12\.3 %"):
        inspect_remote(held(folder))


def test_the_command_says_how_it_is_quantized(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = quantized.make_quantized(tmp_path / "model", quantized.COMPRESSED, tokenizer=False)
    with pytest.raises(SystemExit) as ended:
        main(["inspect", str(folder), "-o", "json"])
    assert ended.value.code == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["quantization"] == {"format": "compressed-tensors", "bits": 4, "groupSize": 32, "symmetric": False}
    assert shown["storedAs"] == ["F32", "W4"]
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0), "its limit of time outlives it"
    with pytest.raises(SystemExit):
        main(["inspect", str(folder)])
    assert "compressed-tensors, 4 bits, groups of 32" in capsys.readouterr().out
