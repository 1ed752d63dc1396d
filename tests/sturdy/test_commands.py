"""What no command should be given: exit status 1 or 2 and plain words, whatever the file holds."""

import copy
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from plimsoll.cli.main import main

NASTY: tuple[Any, ...] = (
    None, True, -1, 0, 1, 10**30, 0.5, float("inf"), float("nan"), "", "x", "\x00", "../..", "{{", "9" * 5000, [], [1],
    [[]], {}, {"a": 1}, {"type": "yarn", "factor": 1e9}, "file:///", "file:///proc/self/mem", "hf://", "s3://x/y",
)  # fmt: skip


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> int:
    """Exit status of a command; what it says on failing must be words."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, words = capsys.readouterr()
    status = ended.value.code or 0
    assert status in (0, 1, 2), arguments
    assert "Traceback" not in out + words
    assert bool(words) == (status != 0), "words on stderr where it failed, and only there"
    assert len(words) < 20_000
    return int(status)


def places(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    below = value.items() if isinstance(value, dict) else ()
    return [path, *(found for key, item in below for found in places(item, (*path, key)))]


def damage(rng: random.Random, value: dict[str, Any]) -> dict[str, Any]:
    """A copy with one to three of its values replaced, removed or joined by a stranger."""
    damaged = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        path = rng.choice(places(damaged)[1:] or [("spec",)])
        owner = damaged
        for key in path[:-1]:
            owner = owner[key]
        match rng.randrange(4):
            case 0:
                del owner[path[-1]]
            case 1:
                owner[f"{path[-1]}x"] = rng.choice(NASTY)
            case _:
                owner[path[-1]] = rng.choice(NASTY)
    return damaged


def manifest(model: Path) -> dict[str, Any]:
    return {
        "apiVersion": "plimsoll.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": "demo"},
        "spec": {
            "model": {"source": f"file://{model}", "servedName": "demo"},
            "accelerator": {"resource": "cpu", "memory": "2Gi"},
            "parallelism": {"tensor": 1},
            "precision": "auto",
            "kvCache": {"ratio": 0.5, "blockSize": 16, "prefixCaching": True},
            "context": {"maxLength": 128, "rope": {"type": "linear", "factor": 2.0}},
            "serving": {"maxRunningRequests": 4, "requestTimeout": "60s"},
            "rollout": {"drainTimeout": "1s"},
            "pod": {"cpu": 1},
        },
    }


def test_damaged_manifests(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "manifest.yaml"
    statuses = []
    for seed in range(100):
        rng = random.Random(seed)
        text = yaml.safe_dump(damage(rng, manifest(tiny_checkpoint)), allow_unicode=True).encode("utf-8", "replace")
        if seed % 4 == 0:
            at = rng.randrange(len(text))
            text = text[:at] + rng.randbytes(rng.randint(1, 5)) + text[at + rng.randint(0, 30) :]
        file.write_bytes(text)
        statuses.append(run(capsys, "plan", "-f", str(file), "-o", rng.choice(["table", "json"])))
    assert statuses.count(1) > 50


def test_damaged_checkpoints(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    statuses = []
    for seed in range(60):
        rng = random.Random(seed)
        folder = tmp_path / f"model-{seed}"
        shutil.copytree(tiny_checkpoint, folder)
        if seed % 2:
            config = folder / "config.json"
            config.write_text(json.dumps(damage(rng, json.loads(config.read_text()))))
        else:
            chosen = rng.choice(sorted(folder.iterdir()))
            data = bytearray(chosen.read_bytes())
            for _ in range(rng.randint(1, 6)):
                data[rng.randrange(min(2000, len(data)))] = rng.randrange(256)
            chosen.write_bytes(data[: rng.choice([len(data), len(data) // 2, 7, 0])])
        file = tmp_path / f"{seed}.yaml"
        file.write_text(yaml.safe_dump(manifest(folder)))
        statuses.append(run(capsys, "plan", "-f", str(file)))
    assert statuses.count(1) > 20


@pytest.mark.parametrize(
    "arguments",
    [
        ("serve", "/nonexistent"), ("serve", "/dev/null"), ("serve", "/"), ("serve", ""), ("serve", "x" * 5000),
        ("serve", "hf://"), ("serve", "hf://../../etc@main"), ("serve", "s3://x/y"), ("up", "-f", "/nonexistent"),
        ("up", "-f", "/"), ("up", "-f", "/dev/zero"), ("plan", "-f", "/dev/zero"), ("plan", "-f", "/dev/null"),
        ("up",), ("plan",), ("serve",), ("frobnicate",), ("serve", "x", "--threads", "1000000"),
        ("serve", "x", "--session-len", "1" + "0" * 30), ("serve", "x", "--rope-scaling-factor", "inf"),
        ("convert", "/nonexistent", "out"), ("chat", "/nonexistent"), ("bench", "--url", "http://127.0.0.1:1/v1"),
    ],
)  # fmt: skip
def test_arguments_that_lead_nowhere(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, *arguments) in (1, 2)


def test_an_address_that_is_none(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "serve", str(tiny_checkpoint), "--server-port", "0", "--server-name", "\udcff") == 1
