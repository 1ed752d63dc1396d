"""`plimsoll up`: from a manifest to an answer, and what it refuses first."""

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from plimsoll.cli.main import main
from tests.support.checkpoints import make_checkpoint
from tests.support.endpoint import eventually

UP = [sys.executable, "-m", "plimsoll.cli.main", "up", "--port", "0", "-f"]


def manifest(name: str, source: Path, **spec: str) -> str:
    fields = {
        "model": f"{{source: 'file://{source}'}}", "accelerator": "{resource: cpu, memory: 700Mi}",
        "precision": "float32", "pod": "{cpu: 1}",
    } | spec  # fmt: skip
    lines = "".join(f"  {field}: {value}\n" for field, value in fields.items())
    return f"apiVersion: plimsoll.dev/v1alpha1\nkind: ModelDeployment\nmetadata: {{name: {name}}}\nspec:\n{lines}"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("up") / "tiny", max_position_embeddings=1024)


def test_the_quickstart_manifest_answers_and_shows_predicted_beside_measured(
    repository: Path, smollm2_gguf: Path, tmp_path: Path
) -> None:
    """examples/quickstart.yaml as it is, with the model where it looks for it."""
    cache = tmp_path / ".cache" / "plimsoll"
    cache.mkdir(parents=True)
    (cache / "SmolLM2-135M-Instruct.Q4_1.gguf").symlink_to(smollm2_gguf)
    question = "What is the capital of France? Answer in one short sentence."
    command = [*UP, str(repository / "examples" / "quickstart.yaml"), "--ask", question]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
    assert "Traceback" not in done.stderr
    table = done.stderr[done.stderr.index("memory") :]
    assert re.search(r"memory +predicted +measured", table)
    predicted, measured = re.search(r"in use +([\d.]+) (?:Mi|Gi)B +([\d.]+) (?:Mi|Gi)B", table).groups()
    assert float(predicted) > 0
    assert float(measured) > 0


@pytest.mark.parametrize(("level", "said"), [("warning", True), ("error", False)])
def test_the_engine_logs_no_more_than_the_option_says(checkpoint: Path, tmp_path: Path, level: str, said: bool) -> None:
    file = tmp_path / "one.yaml"
    file.write_text(manifest("one", checkpoint, kvCache="{precision: int4}"))
    command = [*UP, str(file), "--ask", "hello", "--log-level", level]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert ("a cache in int4 loses quality" in done.stderr) == said
    assert "at int4" in done.stderr


def test_two_deployments_serve_side_by_side_and_drain_together(checkpoint: Path, tmp_path: Path) -> None:
    """One on a single rank, one on three."""
    file = tmp_path / "two.yaml"
    other = manifest(
        "second", checkpoint, model=f"{{source: 'file://{checkpoint}', servedName: '[/second]:x:'}}",
        parallelism="{tensor: 3}", accelerator="{resource: cpu, memory: 500Mi}",
    )  # fmt: skip
    file.write_text(manifest("first", checkpoint) + "---\n" + other)
    with subprocess.Popen([*UP, str(file)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        said: list[str] = []
        reader = threading.Thread(target=lambda: said.extend(iter(process.stderr.readline, "")))
        reader.start()
        try:
            eventually(lambda: sum("http://" in line for line in said) == 2, 120)
            answers = []
            for name in ("first", "[/second]:x:"):
                url = next(re.search(r"http://[\d.:]+/v1", line)[0] for line in said if f"Ready {name} " in line)
                body = {"model": name, "prompt": "hi", "max_tokens": 12, "temperature": 0}
                found = httpx.post(f"{url}/completions", json=body, timeout=60)
                assert found.status_code == 200
                answers.append(found.json()["choices"][0]["text"])
            # The second one lies on three ranks, and answers as the first one does on one.
            assert answers[0] == answers[1] != ""
            assert "of 3 ranks on" in " ".join("".join(said).split())
            assert [rank for rank in range(3) if any(line.startswith(f"rank {rank}: ") for line in said)] == [1, 2]
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
        finally:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
            reader.join()
    assert "Traceback" not in "".join(said)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"accelerator": "{resource: cpu, memory: 100Mi}"}, "100"),
        ({"precision": "float16"}, "spec.precision"),
        ({"kvCache": "{precision: int2}"}, "spec.kvCache.precision"),
        ({"parallelism": "{tensor: 64}"}, "spec.parallelism.tensor"),
        ({"context": "{maxLength: 99999}"}, "maxLength"),
        ({"kvCache": "{ratio: 2}"}, "ratio"),
        ({"replicas": "'2'"}, "replicas"),
        ({"model": "{source: 'pvc://models/tiny'}"}, "spec.model.source: is opened in a cluster alone"),
        ({"model": "{source: 's3://models/tiny'}"}, "plimsoll fetch"),
        ({"serving": "{apiKeysSecret: keys}"}, "Write spec.serving.apiKeysFile in its place"),
        ({"accelerator": "{resource: nvidia.com/gpu, memory: 24Gi}"}, "device"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_starts(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spec: dict[str, str], said: str
) -> None:
    file = tmp_path / "one.yaml"
    file.write_text(manifest("tiny", checkpoint, **spec))
    with pytest.raises(SystemExit) as ended:
        main(["up", "--port", "0", "-f", str(file), "--ask", "Hello?"])
    assert ended.value.code == 1
    words = capsys.readouterr().err
    assert said in words
    assert "Traceback" not in words


def test_fields_that_only_a_cluster_obeys_are_named(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "one.yaml"
    pod = "{cpu: 1, nodeSelector: {disk: ssd}}"
    line = "{resource: cpu, memory: 100Mi}"  # Does not fit, so that nothing starts.
    spread = "{tensor: 2, nodes: 2, topologyKey: rack}"
    changes = {"replicas": "3", "pod": pod, "accelerator": line, "rollout": "{drainTimeout: 9s}", "parallelism": spread}
    file.write_text(manifest("tiny", checkpoint, **changes))
    with pytest.raises(SystemExit):
        main(["up", "--port", "0", "-f", str(file)])
    said = capsys.readouterr().err
    assert "tiny: only a cluster obeys replicas, parallelism.topologyKey, pod.nodeSelector\n" in said
    assert "tiny: on one machine all ranks are processes here, not in 2 pods\n" in said


def test_deployments_that_fit_alone_and_not_together_are_refused_with_the_sum(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "many.yaml"
    large = {"accelerator": "{resource: cpu, memory: 900Gi}"}
    file.write_text("---\n".join(manifest(f"m{number}", checkpoint, **large) for number in range(2)))
    with pytest.raises(SystemExit) as ended:
        main(["up", "-f", str(file)])
    assert ended.value.code == 1
    words = capsys.readouterr().err
    assert " m0 + " in words
    assert "of this machine's memory are free" in words


def test_a_manifest_that_is_not_there_is_said_plainly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["up", "-f", str(tmp_path / "absent.yaml")])
    assert "--file" in capsys.readouterr().err
