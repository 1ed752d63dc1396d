"""Damaged quantized checkpoints: only errors in plain words, and never more memory than the file could need."""

import json
import random
from pathlib import Path

import pytest

from plimsoll.checkpoint.quantized.manifest import MANIFEST_NAME, Manifest, hash_files, write_manifest
from tests.checkpoint.test_fuzz import ROUNDS, rounds
from tests.support import quantized
from tests.support.damage import damage_bytes, damage_json

FORMS = ("awq", "ct", "gptq")


@pytest.fixture(scope="module")
def quantized_originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("fuzz")
    small = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 32}
    for form in FORMS:
        folder, _ = quantized.make_quantized(base / form, quantized.ALL[form], **small)
        write_manifest(folder, Manifest(hash_files(folder, ["config.json"]), "passed", recipe={"method": "awq"}))
    return base


@pytest.mark.parametrize("form", FORMS)
def test_configurations_and_manifests(quantized_originals: Path, tmp_path: Path, form: str) -> None:
    def damage(rng: random.Random, folder: Path) -> None:
        path = folder / rng.choice(["config.json"] * 3 + [MANIFEST_NAME])
        value = json.loads(path.read_text())
        inner = value["quantization_config"] if path.name == "config.json" else value
        for _ in range(rng.randint(1, 3)):
            damage_json(rng, inner)
        path.write_text(json.dumps(value))

    assert sum(map(bool, rounds(quantized_originals, tmp_path, form, damage, 11))) > ROUNDS // 4


@pytest.mark.parametrize("form", FORMS)
def test_headers_and_bytes_of_weights(quantized_originals: Path, tmp_path: Path, form: str) -> None:
    def damage(rng: random.Random, folder: Path) -> None:
        path = folder / "model.safetensors"
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        if rng.random() < 0.4:
            damage_bytes(rng, path, 8 + length)
            return
        header = json.loads(data[8 : 8 + length])
        packed = [name for name in header if "proj" in name]
        match rng.randrange(4):
            case 0:
                header[rng.choice(packed)]["shape"].reverse()
            case 1:
                first, second = rng.sample(packed, 2)
                header[first], header[second] = header[second], header[first]
            case 2:
                entry = header[rng.choice(packed)]
                entry["dtype"] = {"I32": "F32", "F16": "BF16", "I64": "F64"}.get(entry["dtype"], "I32")
            case 3:
                damage_json(rng, header)
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])

    assert sum(map(bool, rounds(quantized_originals, tmp_path, form, damage, 12))) > ROUNDS // 4
