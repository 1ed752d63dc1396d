"""`plimsoll up` of a file that quantizes first: the same two kinds that a cluster takes."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from plimsoll.cli.main import main
from tests.support.checkpoints import make_checkpoint
from tests.support.job_manifests import job_manifest
from tests.support.manifests import manifest

UP = [sys.executable, "-m", "plimsoll.cli.main", "up", "--port", "0", "-f"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("up") / "tiny", max_position_embeddings=1024)


@pytest.fixture
def job(checkpoint: Path, tmp_path: Path) -> dict[str, Any]:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n\n".join(f"Ship {number} is loaded up to her line and never past it." for number in range(300)))
    return {
        "model": {"source": f"file://{checkpoint}"}, "method": "rtn", "weights": {"groupSize": 32},
        "calibration": {"dataset": f"file://{texts}", "sequenceLength": 32}, "evaluation": {"samples": 2},
        "output": f"file://{tmp_path / 'out'}",
    }  # fmt: skip


def write(tmp_path: Path, *documents: dict[str, Any]) -> str:
    file = tmp_path / "both.yaml"
    file.write_text(yaml.safe_dump_all(documents))
    return str(file)


def server(job: str = "tiny-rtn") -> dict[str, Any]:
    accelerator = {"resource": "cpu", "memory": "700Mi"}
    return manifest({"model": {"quantizationJob": job}, "accelerator": accelerator, "pod": {"cpu": 1}}, "tiny")


def test_a_job_and_its_deployment_run_one_after_the_other(job: dict[str, Any], tmp_path: Path) -> None:
    file = write(tmp_path, job_manifest(job, "tiny-rtn"), server())
    done = subprocess.run([*UP, file, "--ask", "hello"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "plimsoll-manifest.json").exists()
    assert "w4a16" in done.stderr
    assert "Traceback" not in done.stderr
    plan = [*UP[:3], "plan", "-f", file]
    planned = subprocess.run(plan, capture_output=True, text=True, timeout=300)
    assert planned.returncode == 0, planned.stderr
    assert "w4a16" in planned.stdout
    (tmp_path / "out" / "plimsoll-manifest.json").unlink()
    planned = subprocess.run(plan, capture_output=True, text=True, timeout=300)
    assert "spec.model.quantizationJob: what it will write is not there yet" in planned.stderr


def test_a_failed_gate_serves_nothing(job: dict[str, Any], tmp_path: Path) -> None:
    job["evaluation"] |= {"maxKLDivergence": 1e-9}
    file = write(tmp_path, job_manifest(job, "tiny-rtn"), server())
    done = subprocess.run([*UP, file, "--ask", "hello"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 3, done.stderr
    assert "past its limit" in done.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"output": "pvc://models/a"}, "spec.output: is a claim of a cluster"),
        ({"calibration": {"configMap": "texts"}}, "spec.calibration.configMap: is read in a cluster alone"),
        ({"evaluation": {"dataset": "pvc://texts"}}, "Write spec.evaluation.dataset: file://PATH"),
        ({"model": {"source": "s3://bucket/a"}}, "plimsoll fetch"),
    ],
)
def test_what_a_cluster_has_is_refused_before_anything_runs(
    change: dict[str, Any], said: str, job: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["up", "-f", write(tmp_path, job_manifest(job | change, "tiny-rtn"))])
    assert ended.value.code == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_deployment_of_a_job_that_is_elsewhere_is_refused(
    job: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["up", "-f", write(tmp_path, job_manifest(job, "tiny-rtn"), server("another"))])
    said = capsys.readouterr().err
    assert "spec.model.quantizationJob: is not in this file" in said
    assert "output: file://FOLDER" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": {"source": "file:///none"}}, "spec.model.source: there is no such file or folder"),
        ({"weights": {"groupSize": 128}}, "spec.weights.groupSize: "),
        (
            {"method": "awq", "calibration": {"samples": 60_000}},
            "spec.calibration.dataset: holds",
        ),
    ],
)
def test_a_refusal_of_a_job_names_fields_of_the_manifest(
    change: dict[str, Any], said: str, job: dict[str, Any], tmp_path: Path
) -> None:
    changed = job | {name: job[name] | value if isinstance(value, dict) else value for name, value in change.items()}
    done = subprocess.run(
        [*UP, write(tmp_path, job_manifest(changed, "tiny-rtn"))], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1, done.stderr
    assert said in done.stderr
    assert "--" not in done.stderr.splitlines()[-1]
