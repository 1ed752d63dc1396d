"""`plimsoll shard`: a file for each rank, read from front to back, and the same answers."""

import json
import os
import shutil
import threading
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from plimsoll.api.errors import CheckpointError, PlimsollError, SpecError
from plimsoll.api.precision import Precision
from plimsoll.api.shard import shards
from plimsoll.checkpoint import open_checkpoint
from plimsoll.checkpoint.shard_writer import shard_checkpoint
from plimsoll.checkpoint.sharded import SHARDS_NAME
from plimsoll.cli.main import build
from plimsoll.runtime.models.loader import load_decoder
from tests.support import quantized
from tests.support.checkpoints import make_checkpoint, make_gguf, make_model
from tests.support.rank_answers import answers, assert_same_answers, load
from tests.support.ranks import ThreadRank, on_ranks
from tests.support.tables import float32_tables

TABLE = float32_tables()[-1]
SHAPES: dict[str, Any] = {
    "vocab_size": 331, "hidden_size": 288, "intermediate_size": 160, "num_attention_heads": 9, "num_key_value_heads": 3,
    "head_dim": 32, "num_hidden_layers": 1,
}  # fmt: skip
MODELS: dict[str, tuple[str, str, Precision, dict[str, Any]]] = {
    "biased": ("", "LlamaForCausalLM", "float32", {"attention_bias": True, "mlp_bias": True}),
    "tied": ("", "Phi3ForCausalLM", "w8a16", {"tie_word_embeddings": True}),
    "awq": ("awq", "InternLM2ForCausalLM", "w4a16", {}),
    "ct": ("ct", "LlamaForCausalLM", "w4a16", {}),
    "gptq-8": ("gptq-8", "LlamaForCausalLM", "w8a16", {}),
}


def make(folder: Path, name: str) -> Path:
    form, architecture, _, changes = MODELS[name]
    if not form:
        return make_checkpoint(folder, architecture, **SHAPES | changes)
    return quantized.make_quantized(folder, quantized.ALL[form], architecture, **SHAPES | changes)[0]


@pytest.mark.parametrize("name", MODELS)
def test_each_rank_reads_its_file_once_from_front_to_back(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    precision, source = MODELS[name][2], make(tmp_path / "model", name)
    for tensor in (2, 4):
        done: list[tuple[int, int]] = []
        out = shard_checkpoint(
            source, tensor, tmp_path / f"cut-{tensor}", precision, progress=lambda *now, done=done: done.append(now)
        )
        assert done[-1][0] == done[-1][1]
        assert_same_answers(load(out, TABLE, precision), tensor, answers(load(source, TABLE, precision)(None)))
        cut = open_checkpoint(out)
        assert {fact.name: fact.shape for fact in cut.tensors.values()} == {
            fact.name: fact.shape for fact in open_checkpoint(source).tensors.values()
        }
        assert (out / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    reads: dict[int, list[tuple[int, int]]] = defaultdict(list)
    read = os.preadv

    def noted(descriptor: int, buffers: Any, offset: int) -> int:
        got = read(descriptor, buffers, offset)
        reads[threading.get_ident()].append((offset, got))
        return got

    def of(rank: ThreadRank) -> list[tuple[int, int]]:
        part = shards(cut.facts, 4, precision)[rank.rank]
        before = len(reads[threading.get_ident()])
        load_decoder(cut, cut.facts, TABLE, torch.float32, precision=precision, shard=part, group=rank)
        # The first two reads are those of the header.
        return reads[threading.get_ident()][before + 2 :]

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", noted)
        found = on_ranks(4, of)
    for rank, places in enumerate(found):
        assert all(offset + got == following for (offset, got), (following, _) in pairwise(places))
        assert sum(places[-1]) == (out / f"rank-{rank}-of-4.safetensors").stat().st_size


def refused(call: Any, *given: Any, **more: Any) -> str:
    with pytest.raises(PlimsollError) as caught:
        call(*given, **more)
    return str(caught.value)


def test_what_it_is_not_cut_for_is_refused(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", tokenizer=False, **SHAPES | {"intermediate_size": 1152})
    out = shard_checkpoint(source, 2, tmp_path / "cut")
    assert "is cut for a tensor-parallel size of 2 (found 1)" in refused(load(out, TABLE), None)
    with pytest.raises(SpecError, match=r"is cut for a tensor-parallel size of 2 \(found 3\). Use 2, or"):
        on_ranks(3, load(out, TABLE))
    with pytest.raises(SpecError, match=r"is cut for bfloat16.*precision"):
        on_ranks(2, load(out, TABLE, "w4a16"))
    assert "none has the whole model" in refused(open_checkpoint(out).read, "model.norm.weight")
    assert "is cut already" in refused(shard_checkpoint, out, 2, tmp_path / "again")
    assert "exists already" in refused(shard_checkpoint, source, 2, out)
    assert "Sizes that work: 1 to 9" in refused(shard_checkpoint, source, 10, tmp_path / "ten")
    assert "must be 2 or more" in refused(shard_checkpoint, source, 1, tmp_path / "one")
    gguf = make_gguf(tmp_path / "m.gguf", make_model("LlamaForCausalLM"))
    assert "plimsoll convert" in refused(shard_checkpoint, gguf, 2, tmp_path / "blocks")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "m.gguf", "model"]


def test_damage_is_named(tmp_path: Path) -> None:
    out = shard_checkpoint(make_checkpoint(tmp_path / "model", tokenizer=False), 2, tmp_path / "cut")
    said = json.loads((out / SHARDS_NAME).read_text())
    damages: dict[str, Any] = {
        "version": 2, "shards": said["shards"][:1], "bytes": [1, 2], "tensors": {"model.norm.weight": ["F32", [-1]]},
    }  # fmt: skip
    for key, value in damages.items():
        (out / SHARDS_NAME).write_text(json.dumps(said | {key: value}))
        with pytest.raises(CheckpointError, match=r"plimsoll shard"):
            open_checkpoint(out)
    (out / SHARDS_NAME).write_text(json.dumps(said | {"shards": said["shards"] * 33}))
    with pytest.raises(CheckpointError, match=r"shards: must be 2 to 64"):
        open_checkpoint(out)
    (out / SHARDS_NAME).write_text(json.dumps(said | {"shards": [{"queries": 3}] * 2}))
    with pytest.raises(CheckpointError, match=r"shards\[0\]: must be runs"):
        open_checkpoint(out)
    (out / SHARDS_NAME).write_text(json.dumps(said))
    shutil.copyfile(out / "rank-0-of-2.safetensors", out / "rank-1-of-2.safetensors")
    with pytest.raises(CheckpointError, match=r"rank-1-of-2.*(another size|does not hold rows)"):
        on_ranks(2, load(out, TABLE))


def test_the_command_line(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model")
    given = ["shard", str(source), "--tensor", "2", "--output", str(tmp_path / "cut")]
    done = CliRunner().invoke(build(), given)
    assert done.exit_code == 0, done.output
    assert "cut for 2 ranks" in done.output
    assert sorted(path.name for path in (tmp_path / "cut").iterdir() if path.suffix == ".safetensors") == [
        "rank-0-of-2.safetensors", "rank-1-of-2.safetensors",
    ]  # fmt: skip
