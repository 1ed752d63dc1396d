"""Damaged and hostile checkpoints: only errors in plain words, and never more memory than the file could need."""

import json
import random
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from plimsoll.api.errors import CheckpointError, SpecError
from plimsoll.checkpoint.chat_template import ChatTemplateError
from plimsoll.checkpoint.gguf_file import GgufFile
from tests.support.checkpoints import make_checkpoint, make_gguf, make_model
from tests.support.damage import NASTY, damage_bytes, damage_json, damaged_header
from tests.support.fuzz_readers import use

#: Five kinds of damage, each tried this often: 500 checkpoints.
ROUNDS = 100
#: The files are under 1 MB; an error costs their headers a few times over, never what a forged size asks for.
MEMORY = 16_000_000


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("fuzz")
    small = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 32}
    make_checkpoint(base / "folder", "MistralForCausalLM", **small)
    make_checkpoint(base / "sharded", "Qwen2ForCausalLM", shard_bytes=50_000, **small)
    make_gguf(base / "model.gguf", make_model("LlamaForCausalLM", **small), block_type="Q4_1")
    return base


def try_open(path: Path, errors: list[str]) -> None:
    """Open, read everything and tokenise: each step works or refuses in plain words, within bounded memory."""
    tracemalloc.start()
    try:
        use(path)
        errors.append("")
    except (CheckpointError, SpecError, ChatTemplateError) as refusal:
        errors.append(str(refusal) if refusal.field else f"names no field: {refusal}")
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MEMORY
    assert len(errors[-1]) < 2_000
    assert not errors[-1].startswith("names no field")


def rounds(
    originals: Path, tmp_path: Path, name: str, damage: Callable[[random.Random, Path], None], seed: int
) -> list[str]:
    errors: list[str] = []
    for index in range(ROUNDS):
        rng = random.Random(seed * 10_000 + index)
        source = originals / name
        target = tmp_path / (f"{index}" + source.suffix)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)
        try:
            damage(rng, target)
            try_open(target, errors)
        except BaseException as error:
            error.add_note(f"{name}, seed {seed * 10_000 + index}, in {target}")
            raise
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink()
    return errors


def test_configurations(originals: Path, tmp_path: Path) -> None:
    def damage(rng: random.Random, folder: Path) -> None:
        path = folder / rng.choice(["config.json"] * 4 + ["generation_config.json", "tokenizer_config.json"])
        value = json.loads(path.read_text())
        for _ in range(rng.randint(1, 3)):
            damage_json(rng, value)
        if path.name == "config.json" and rng.random() < 0.3:
            value[rng.choice(["rope_scaling", "rope_parameters", "layer_types", "head_dim", "quantization_config"])] = (
                rng.choice(NASTY)
            )
        path.write_text(json.dumps(value))

    errors = rounds(originals, tmp_path, "folder", damage, 1)
    assert sum(map(bool, errors)) > ROUNDS // 4, "the damage is worth refusing"


def test_bytes_of_any_file(originals: Path, tmp_path: Path) -> None:
    def damage(rng: random.Random, folder: Path) -> None:
        damage_bytes(rng, rng.choice(sorted(folder.iterdir())))

    assert sum(map(bool, rounds(originals, tmp_path, "sharded", damage, 2))) > ROUNDS // 4


def test_safetensors_headers_and_indexes(originals: Path, tmp_path: Path) -> None:
    def damage(rng: random.Random, folder: Path) -> None:
        if rng.random() < 0.25:
            path = folder / "model.safetensors.index.json"
            value = json.loads(path.read_text())
            damage_json(rng, value)
            path.write_text(json.dumps(value))
            return
        path = rng.choice(sorted(folder.glob("*.safetensors")))
        path.write_bytes(damaged_header(rng, path.read_bytes()))

    assert sum(map(bool, rounds(originals, tmp_path, "sharded", damage, 3))) > ROUNDS // 2


def test_gguf_bytes(originals: Path, tmp_path: Path) -> None:
    def damage(rng: random.Random, path: Path) -> None:
        for _ in range(rng.randint(1, 3)):
            # Mostly in the metadata, which begins the file.
            damage_bytes(rng, path, rng.choice([400, 1_200, 6_000, 10_000, None]))

    assert sum(map(bool, rounds(originals, tmp_path, "model.gguf", damage, 4))) > ROUNDS // 2


def test_gguf_metadata(originals: Path, tmp_path: Path) -> None:
    """Sound layout, senseless values: what a careful enemy would write."""
    model = make_model("LlamaForCausalLM", hidden_size=32, num_attention_heads=2, num_key_value_heads=1)
    keys = [key for key in GgufFile(originals / "model.gguf").metadata if key != "general.architecture"]
    keys += ["llama.rope.scaling.type", "llama.rope.scaling.factor", "llama.expert_count", "split.count"]
    keys += ["llama.attention.sliding_window", "tokenizer.ggml.scores", "general.alignment"]
    values = (
        None, True, False, -1, 0, 1, 2, 3, 32, 255, 2**31 - 1, 0.0, -1.0, 1e30, float("nan"), float("inf"), "", "x",
        "llama", "linear", "yarn", "qwen2", "tekken", "{{ 1 / 0 }}", "{%", "a" * 5_000, [0], [1, 2, 3], [-1] * 320,
        [0.5] * 320,
        ["a"], ["a", "b"] * 160, ["a b"] * 3, [True, False],
    )  # fmt: skip

    def damage(rng: random.Random, path: Path) -> None:
        make_gguf(path, model, metadata={rng.choice(keys): rng.choice(values) for _ in range(rng.randint(1, 2))})

    assert sum(map(bool, rounds(originals, tmp_path, "model.gguf", damage, 5))) > ROUNDS // 4
