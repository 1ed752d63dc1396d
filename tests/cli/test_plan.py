"""`plimsoll plan`: from a manifest and a checkpoint, or a bare configuration, to the load line."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from plimsoll.api.facts import facts_from_config
from plimsoll.api.manifest import parse_manifest
from plimsoll.api.quantity import format_bytes
from plimsoll.checkpoint.open import open_checkpoint
from plimsoll.cli.load_line import shares
from plimsoll.cli.main import main
from plimsoll.cli.up import _budget
from plimsoll.runtime.config import from_deployment
from plimsoll.runtime.engine.worker.memory import find_device, find_dtype, plan_memory
from plimsoll.runtime.kernels.forecast import foreseen_table
from plimsoll.runtime.kernels.selection import select
from plimsoll.runtime.machine import cgroup
from tests.api.test_budget import INTERNLM
from tests.support import quantized
from tests.support.checkpoints import make_checkpoint


def manifest(folder: Path, source: str, **parts: Any) -> str:
    spec = {"model": {"source": source}, "accelerator": {"resource": "cpu", "memory": "2Gi"}, **parts}
    head = {"apiVersion": "plimsoll.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": "demo"}}
    path = folder / "demo.yaml"
    path.write_text(yaml.safe_dump({**head, "spec": spec}))
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        main(["plan", *arguments])
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


@pytest.fixture
def card(tmp_path: Path) -> tuple[str, ...]:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(INTERNLM))
    gpu = {"resource": "nvidia.com/gpu", "memory": "24Gi"}
    return "-f", manifest(tmp_path, "hf://internlm/internlm2_5-7b-chat@main", accelerator=gpu), "--config", str(config)


def test_the_real_model_is_planned_from_its_headers(
    smollm2_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = manifest(tmp_path, f"file://{smollm2_gguf}")
    code, out, _ = run(capsys, "-f", file, "-o", "json")
    report = json.loads(out)
    assert (code, report["fits"], report["precision"], report["maxLength"]) == (0, True, "w4a16", 8192)
    assert report["rejected"] == report["notes"] == []
    terms = report["perDevice"]
    assert (
        terms["total"]
        == 2 << 30
        == sum(terms[name] for name in ("context", "weights", "workspace", "kvCache", "headroom"))
    )
    # Of 134,515,008 parameters 61 norms of 576 stay with the activations, in four bytes. The embedding, also the
    # head, lies in Q8_0 blocks, 1 1/8 bytes a value, and the rest in Q4_1 blocks, 5/8.
    norms, embedding = 61 * 576, 49_152 * 576
    blocks = 134_515_008 - norms - embedding
    assert terms["weights"] == 4 * norms + embedding * 9 // 8 + blocks * 5 // 8
    assert report["blockBytes"] == 30 * 2 * 3 * 64 * 64 * 2
    code, out, _ = run(capsys, "-f", file)
    assert code == 0
    assert "⊖" in out
    assert report["activationPrecision"] == foreseen_table("cpu").activation_rows
    assert report["activations"].startswith(f"activations become {report['activationPrecision']} where they meet w4a16")
    assert report["activations"] in " ".join(out.split())
    assert all(word in out for word in ("weights", "workspace", "KV cache", "headroom", "8192 tokens"))


def test_rows_of_activations_are_those_asked_for_in_place_of_the_manifests(
    smollm2_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = manifest(tmp_path, f"file://{smollm2_gguf}", serving={"activationPrecision": "bfloat16"})

    def planned(*options: str) -> dict[str, Any]:
        code, out, _ = run(capsys, "-f", file, "-o", "json", *options)
        assert code == 0
        return dict(json.loads(out))

    kept, quantized_rows = planned(), planned("--activation-precision", "int8")
    assert (kept["activationPrecision"], quantized_rows["activationPrecision"]) == ("bfloat16", "int8")
    assert planned("--activation-precision", "auto")["activationPrecision"] == foreseen_table("cpu").activation_rows
    # Layers of many rows of 8 bits are one call each, which holds less.
    assert quantized_rows["workspace"]["activations"] < kept["workspace"]["activations"]
    code, _, err = run(capsys, "-f", file, "--device", "cuda", "--memory", "2Gi", "--activation-precision", "int8")
    assert (code, "spec.serving.activationPrecision: only products on a CPU know it" in err) == (1, True)


def test_a_bare_config_is_enough(card: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, *card, "-o", "json")
    report = json.loads(out)
    assert (code, report["precision"], report["tensor"]) == (0, "bfloat16", 1)
    assert report["inUse"] / 2**30 == pytest.approx(23, rel=0.03)
    assert report["notRunYet"] is None
    assert report["maxLengthFrom"] == "trained length"


def test_what_auto_passed_over_and_what_does_not_run_yet_are_said(
    card: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, *card, "--memory", "10GiB")
    assert code == 0
    assert "passed over precision bfloat16" in out
    assert "not run yet" not in out
    two = Path(card[1]).with_name("two.yaml")
    two.write_text(Path(card[1]).read_text().replace("spec:", "spec:\n  parallelism: {tensor: 2}", 1))
    code, out, _ = run(capsys, "-f", str(two), *card[2:])
    assert "not run yet: spec.parallelism.tensor" in out


def test_ranks_are_shown_side_by_side_and_unevenness_is_said(
    smollm2_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = manifest(tmp_path, f"file://{smollm2_gguf}", parallelism={"tensor": 2}, precision="bfloat16")
    code, out, _ = run(capsys, "-f", file, "-o", "json")
    report = json.loads(out)
    assert (code, report["tensor"], [rank["rank"] for rank in report["ranks"]]) == (0, 2, [0, 1])
    shares = [[rank[name] for name in ("heads", "kvHeads", "width", "vocabulary")] for rank in report["ranks"]]
    assert shares == [[6, 2, 768, 24576], [3, 1, 768, 24576]]
    first, second = report["ranks"]
    assert first["kvCache"] == 2 * second["kvCache"] == report["perDevice"]["kvCache"] == (
        report["blocks"] * report["blockBytes"]
    )  # fmt: skip
    assert first["collectives"] > second["collectives"] == 0
    for rank in report["ranks"]:
        terms = ("context", "weights", "workspace", "kvCache", "headroom")
        assert sum(rank[name] for name in terms) == rank["total"] == 2 << 30
        assert rank["inUse"] == rank["total"] - rank["headroom"]
    code, out, _ = run(capsys, "-f", file)
    rows = [line.split() for line in out.splitlines()]
    assert ["rank", "heads", "KV", "width", "weights", "workspace", "KV", "cache", "in", "use"] in rows
    for rank, start in ((first, ["0", "6", "2", "768"]), (second, ["1", "3", "1", "768"])):
        (row,) = [row for row in rows if row[:4] == start]
        sizes = [format_bytes(rank[name]) for name in ("weights", "workspace", "kvCache", "inUse")]
        assert " ".join(row[4:]) == " ".join(sizes)
    assert "note: rank 0 holds 2 of 3 key-value heads: it decides the budget" in out
    assert "collectives 6.1 MiB" in out.replace("\n", " ")


def test_ranks_on_this_machine_share_its_memory(
    smollm2_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "memory_limit", lambda: 3 << 30)
    for tensor, line in ((1, 3 << 30), (3, 1 << 30), ("auto", 3 << 30)):
        file = manifest(tmp_path, f"file://{smollm2_gguf}", accelerator={"resource": "cpu"},
                        parallelism={"tensor": tensor}, precision="bfloat16")  # fmt: skip
        report = json.loads(run(capsys, "-f", file, "-o", "json")[1])
        assert [rank["total"] for rank in report["ranks"]] == [line] * (1 if tensor == "auto" else int(tensor))


def test_plan_takes_the_precision_and_the_devices_that_up_takes(
    card: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    facts = facts_from_config(INTERNLM)
    for memory in ("10Gi", "17Gi", "24Gi"):
        _, out, _ = run(capsys, *card, "--memory", memory, "-o", "json")
        planned = json.loads(out)
        deployment = parse_manifest(Path(card[1]).read_text().replace("24Gi", memory))
        found = _budget(deployment, facts)
        assert found is not None
        assert (planned["precision"], planned["tensor"]) == (found.precision, found.tensor)
        assert planned["perDevice"] == found.per_device()


def test_a_mig_profile_is_sized_by_its_name(card: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    slice_ = Path(card[1]).with_name("slice.yaml")
    text = Path(card[1]).read_text()
    text = re.sub("memory: 24Gi", "", text).replace("nvidia.com/gpu", "nvidia.com/mig-3g.40gb")
    slice_.write_text(text)
    code, out, _ = run(capsys, "-f", str(slice_), *card[2:], "-o", "json")
    report = json.loads(out)
    assert (code, report["device"]["kind"], report["perDevice"]["total"]) == (0, "cuda", 40 * (1 << 30) * 88 // 100)


def test_what_does_not_fit_exits_1_with_the_sum_and_ways_out(
    card: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = {"tensor": 1}
    gpu = {"resource": "nvidia.com/gpu", "memory": "16.5Gi"}
    file = manifest(tmp_path, "file://x", accelerator=gpu, parallelism=one, precision="bfloat16",
                    context={"maxLength": 8192})  # fmt: skip
    arguments = ("-f", file, *card[2:])
    code, _, err = run(capsys, *arguments)
    assert code == 1
    assert "needs 14.4 GiB weights" in err
    assert "fits with: context.maxLength" in err
    code, out, _ = run(capsys, *arguments, "-o", "json")
    report = json.loads(out)
    assert (code, report["fits"]) == (1, False)
    assert any(way.startswith("precision w8a16") for way in report["fitsWith"])


def test_the_folder_of_a_config_without_weights_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(INTERNLM))
    code, out, _ = run(capsys, "-f", manifest(tmp_path, f"file://{folder}"), "--memory", "40Gi", "-o", "json")
    device = json.loads(out)["device"]
    assert (code, device["kind"], device["total"]) == (0, "cpu", 40 << 30)


def test_without_a_line_the_machine_is_asked(
    smollm2_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = manifest(tmp_path, f"file://{smollm2_gguf}", accelerator={"resource": "cpu"})
    code, out, _ = run(capsys, "-f", file, "-o", "json")
    assert code == 0
    assert 0 < json.loads(out)["perDevice"]["kvCache"] < json.loads(out)["device"]["total"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--memory", "lots"], "--memory"),
        (["--device", "tpu"], "--device: must be one of cpu, cuda"),
        (["-o", "xml"], "--output: must be one of table, json"),
        (["--name", "other"], "no deployment of this name"),
        (["--config", "/nowhere/config.json"], "cannot be read"),
    ],
)
def test_wrong_options_are_named(
    card: tuple[str, ...], capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    code, _, err = run(capsys, *card, *arguments)
    assert code == 1
    assert said in err


def test_a_config_that_makes_no_sense_names_file_and_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(INTERNLM | {"num_key_value_heads": 5}))
    code, _, err = run(capsys, "-f", manifest(tmp_path, "file://x"), "--config", str(config))
    assert code == 1
    assert f"{config}: num_key_value_heads" in err


def test_a_file_that_is_not_there_is_said_plainly(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "-f", "nowhere.yaml")
    assert code == 1
    assert "cannot be read: No such file" in err


def test_the_bar_has_its_width_and_shows_all_there_is() -> None:
    assert shares([0, 1, 1, 2], 8) == [0, 2, 2, 4]
    for sizes in ([1, 10**9, 1, 0, 1], [1, 1, 1, 1, 1], [5, 0, 0, 0, 0]):
        cells = shares(sizes, 40)
        assert sum(cells) == 40
        assert all((cell > 0) == (size > 0) for cell, size in zip(cells, sizes, strict=True))


@pytest.mark.parametrize("table", ["auto", "torch"])
@pytest.mark.parametrize("precision", ["auto", "float32"])
def test_the_engine_is_told_the_very_bytes_that_were_planned(
    table: str, precision: str, smollm2_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("PLIMSOLL_KERNELS", table)
    file = manifest(tmp_path, f"file://{smollm2_gguf}", precision=precision, context={"maxLength": 2048})
    _, out, _ = run(capsys, "-f", file, "-o", "json")
    planned = json.loads(out)
    engine, _ = from_deployment(parse_manifest(Path(file).read_text(), file), smollm2_gguf)
    device = find_device(engine.device)
    dtype = find_dtype(engine.precision, device)
    closed = plan_memory(engine, open_checkpoint(smollm2_gguf).facts, select(device, dtype, engine.kernels), dtype)
    assert closed.predicted == planned["perDevice"]
    assert (closed.precision, closed.num_blocks) == (planned["precision"], planned["blocks"])


@pytest.mark.parametrize(("table", "precision", "said"), [
    ("torch", "w4a16", True), ("torch", "w8a16", True), ("torch", "bfloat16", False), ("auto", "w4a16", False),
])  # fmt: skip
def test_codes_that_this_machine_has_no_kernels_for_are_said_to_cost_time(
    table: str, precision: str, said: bool, smollm2_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("PLIMSOLL_KERNELS", table)
    file = manifest(tmp_path, f"file://{smollm2_gguf}", precision=precision)
    shown = run(capsys, "-f", file)[1].replace("\n", " ")
    assert ("slower than bfloat16 here" in shown) == said
    assert ("Q4_1 blocks a second time" in shown) == (precision == "w8a16")


@pytest.mark.parametrize(("precision", "taken"), [("auto", "w4a16"), ("bfloat16", "bfloat16")])
def test_a_quantized_checkpoint_is_planned_as_the_engine_will_hold_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], precision: str, taken: str
) -> None:
    folder, _ = quantized.make_quantized(tmp_path / "model", quantized.AWQ, "Qwen2ForCausalLM", tokenizer=False)
    file = manifest(tmp_path, f"file://{folder}", precision=precision, context={"maxLength": 128})
    planned = json.loads(run(capsys, "-f", file, "-o", "json")[1])
    assert (planned["precision"], planned["rejected"], planned["notRunYet"]) == (taken, [], None)
    engine, _ = from_deployment(parse_manifest(Path(file).read_text(), file), folder)
    dtype = find_dtype(engine.precision, find_device("cpu"))
    closed = plan_memory(engine, open_checkpoint(folder).facts, select(find_device("cpu"), dtype), dtype)
    assert (closed.predicted, closed.precision) == (planned["perDevice"], taken)
    code, _, err = run(capsys, "-f", manifest(tmp_path, f"file://{folder}", precision="w8a16"))
    assert code == 1
    assert "spec.precision: the checkpoint's weights are awq of 4 bits (found 'w8a16'). Use auto or w4a16" in err


def test_a_host_tier_is_a_term_of_a_cpu_and_a_line_of_its_own_of_a_gpu(
    smollm2_gguf: Path, tmp_path: Path, card: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    file = manifest(tmp_path, f"file://{smollm2_gguf}", kvCache={"hostMemory": "256Mi"})
    code, out, _ = run(capsys, "-f", file, "-o", "json")
    report = json.loads(out)
    assert code == 0
    assert report["perDevice"]["hostCache"] == report["hostBlocks"] * report["blockBytes"]
    assert 0 <= (256 << 20) - report["perDevice"]["hostCache"] < report["blockBytes"]
    terms = report["perDevice"]
    assert terms["total"] == sum(size for name, size in terms.items() if name != "total")
    _, shown, _ = run(capsys, "-f", file)
    assert "host tier" in shown
    assert f"host tier: {report['hostBlocks'] * 64} tokens in {report['hostBlocks']} blocks" in shown
    _, out, _ = run(capsys, "-f", manifest(tmp_path, f"file://{smollm2_gguf}"), "-o", "json")
    assert "hostCache" not in json.loads(out)["perDevice"]


def test_where_a_host_tier_lies_beside_a_card_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(INTERNLM))
    gpu = {"resource": "nvidia.com/gpu", "memory": "24Gi"}
    file = manifest(tmp_path, "hf://a/b@main", accelerator=gpu, kvCache={"hostMemory": "16Gi"})
    _, shown, _ = run(capsys, "-f", file, "--config", str(config))
    assert "host tier: 131072 tokens in 2048 blocks (16.0 GiB of each rank, beside the line" in shown


def test_key_biases_are_read_where_weights_are_at_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_checkpoint(tmp_path / "qwen2", "Qwen2ForCausalLM", tokenizer=False)
    file = manifest(tmp_path, f"file://{folder}", kvCache={"precision": "int8"})
    code, out, _ = run(capsys, "-f", file, "-o", "json")
    assert (code, json.loads(out)["cachePrecision"], "key" in str(json.loads(out)["notes"])) == (0, "int8", False)
    code, out, _ = run(capsys, "-f", file, "-o", "json", "--config", str(folder / "config.json"))
    assert (code, "the keys of Qwen2ForCausalLM have biases" in out) == (0, True)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.self_attn.k_proj.bias"] += 500 * torch.randn(32, generator=torch.Generator().manual_seed(0))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    code, out, _ = run(capsys, "-f", file, "-o", "json")
    assert (code, "the range of the key biases is" in out) == (0, True)
