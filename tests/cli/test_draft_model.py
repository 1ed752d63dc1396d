"""A draft model in `plan`, `up` and `serve`, and in the library."""

import json
import re
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from plimsoll import LLM, SamplingParams
from plimsoll.api.deployment import ModelDeploymentSpec
from plimsoll.api.errors import PlimsollError
from plimsoll.api.manifest import parse_manifest
from plimsoll.api.one_machine import refuse_on_one_machine
from plimsoll.checkpoint import open_checkpoint
from plimsoll.cli.main import main
from plimsoll.runtime.config import from_deployment
from plimsoll.runtime.engine.worker.memory import find_device, find_dtype, plan_memory
from plimsoll.runtime.kernels.selection import select
from tests.cli.test_plan import manifest, run
from tests.cli.test_serve import SERVE, SMALL, refusal
from tests.support.checkpoints import make_checkpoint
from tests.support.endpoint import eventually

GUESSES = ["--speculative-tokens", "4"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model, a draft, and one whose tokenizer has two tokens in each other's place."""
    folder = tmp_path_factory.mktemp("drafts")
    found = {
        "model": make_checkpoint(folder / "model"),
        "draft": make_checkpoint(folder / "draft", num_hidden_layers=1),
        "swapped": make_checkpoint(folder / "swapped"),
    }
    file = found["swapped"] / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    names = {index: token for token, index in tokenizer["model"]["vocab"].items()}
    tokenizer["model"]["vocab"] |= {names[40]: 41, names[41]: 40}
    file.write_text(json.dumps(tokenizer))
    return found


def test_plan_counts_the_draft_to_the_byte(
    models: dict[str, Path], smollm2_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = f"file://{smollm2_gguf}"
    serving = {"speculativeTokens": 4, "draft": {"source": source}}
    file = manifest(tmp_path, source, serving=serving, context={"maxLength": 2048})
    code, out, _ = run(capsys, "-f", file, "-o", "json")
    planned = json.loads(out)
    terms = planned["perDevice"]
    assert code == 0
    assert terms["draft"] == terms["weights"]
    assert terms["total"] == sum(size for name, size in terms.items() if name != "total")
    assert planned["draftPrecision"] == "w4a16"
    assert planned["blockBytes"] == 2 * planned["hostBlockBytes"]
    assert planned["workspace"]["draft"] > 0
    engine, _ = from_deployment(parse_manifest(Path(file).read_text(), file), smollm2_gguf, draft=smollm2_gguf)
    dtype, facts = find_dtype(engine.precision, find_device("cpu")), open_checkpoint(smollm2_gguf).facts
    closed = plan_memory(engine, facts, select(find_device("cpu"), dtype), dtype, facts)
    assert closed.predicted == terms
    assert closed.num_blocks == planned["blocks"]
    assert "draft model" in run(capsys, "-f", file)[1]


def test_plan_shows_the_draft_on_rank_0_alone(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = f"file://{models['model']}"
    wish: dict[str, Any] = {"parallelism": {"tensor": 2}, "precision": "bfloat16"}
    serving = {"speculativeTokens": 4, "draft": {"source": f"file://{models['draft']}"}}
    file = manifest(tmp_path, source, serving=serving, **wish)
    code, out, _ = run(capsys, "-f", file, "-o", "json")
    planned = json.loads(out)
    assert code == 0
    first, second = planned["ranks"]
    assert first["draft"] == planned["perDevice"]["draft"] > 0
    assert "draft" not in second
    assert any(note.startswith("rank 0 alone runs the draft") for note in planned["notes"])
    engine, _ = from_deployment(parse_manifest(Path(file).read_text(), file), models["model"], draft=models["draft"])
    dtype, facts = find_dtype(engine.precision, find_device("cpu")), open_checkpoint(models["model"]).facts
    table = select(find_device("cpu"), dtype)
    closed = plan_memory(engine, facts, table, dtype, open_checkpoint(models["draft"]).facts)
    assert closed.rank_bytes == (first["inUse"], second["inUse"])
    columns = next(line for line in run(capsys, "-f", file)[1].splitlines() if line.startswith("rank "))
    assert columns.split() == "rank heads KV width weights draft workspace KV cache in use".split()
    plain = run(capsys, "-f", manifest(tmp_path, source, **wish))[1]
    assert "draft" not in plain


def test_a_draft_is_refused_where_it_cannot_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = "hf://org/model@main"
    for serving, words in (
        ({"draft": {"source": source}}, "spec.serving.draft: guesses no tokens: write speculativeTokens"),
        ({"speculativeTokens": 4, "draft": {"source": "org/model"}}, "spec.serving.draft.source: is not an address"),
        ({"speculativeTokens": 4, "draft": {"source": source, "tokens": 3}}, "spec.serving.draft.tokens"),
    ):
        code, _, err = run(capsys, "-f", manifest(tmp_path, source, serving=serving))
        assert code == 1
        assert words in err
    spec = {
        "model": {"source": source}, "accelerator": {"resource": "cpu"},
        "serving": {"speculativeTokens": 4, "draft": {"source": "pvc://claim/draft"}},
    }  # fmt: skip
    with pytest.raises(PlimsollError, match=r"spec.serving.draft.source: is opened in a cluster alone.*pvc://claim"):
        refuse_on_one_machine(ModelDeploymentSpec.model_validate(spec))


def test_a_draft_that_is_not_there_is_named_as_the_user_wrote_it(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serving = {"speculativeTokens": 4, "draft": {"source": f"file://{tmp_path}/absent"}}
    file = manifest(tmp_path, f"file://{models['model']}", serving=serving)
    for command in ("plan", "up"):
        with pytest.raises(SystemExit):
            main([command, "-f", file])
        assert "spec.serving.draft.source: there is no such file" in capsys.readouterr().err


def test_a_draft_of_other_tokens_is_refused(models: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    options = [str(models["model"]), "--server-port", "0", *SMALL, *GUESSES]
    words = refusal(capsys, *options, "--draft-model", str(models["swapped"]))
    assert re.search(r"--draft-model: has other tokens than the model: 40 is '.*' of its 320, and '.*' of", words)
    words = refusal(capsys, *options, "--draft-model", str(models["model"] / "absent"))
    assert "--draft-model: there is no such file" in words
    for field, options in (("model", {}), ("draft_model", {"draft_model": "/absent", "speculative_tokens": 4})):
        with pytest.raises(PlimsollError, match=rf"^{field}: there is no such file"):
            LLM(models["model"] if options else "/absent", **options)
    with pytest.raises(PlimsollError, match=r"^draft_model: has other tokens"):
        LLM(models["model"], speculative_tokens=4, draft_model=str(models["swapped"]), memory=2**30)


def test_the_library_answers_alike_with_a_draft(models: dict[str, Path]) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True, logprobs=2)
    found = []
    for draft in ({}, {"draft_model": f"file://{models['model']}", "speculative_tokens": 3}):
        with LLM(models["model"], precision="float32", kv_cache_bytes=2**21, threads=1, **draft) as llm:
            answers = [one.outputs[0] for one in llm.generate(["The quick", "brown fox"], params)]
            found.append([(one.token_ids, one.logprobs) for one in answers])
            assert bool(llm.engine.stats.guesses_kept) == bool(draft)
    assert found[0] == found[1]


def test_a_server_with_a_draft_says_what_it_takes_and_counts_guesses(models: dict[str, Path]) -> None:
    config = json.dumps({"model": str(models["model"]), "num_speculative_tokens": 4})
    command = [*SERVE, str(models["model"]), "--server-port", "0", "--model-name", "named", *SMALL]
    with subprocess.Popen([*command, "--speculative-config", config], stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        said: list[str] = []
        reader = threading.Thread(target=lambda: said.extend(iter(server.stderr.readline, "")))
        reader.start()
        try:
            eventually(lambda: any("http://" in line for line in said), 60)
            url = next(found[0] for line in said if (found := re.search(r"http://[\d.:]+/v1", line)))
            body = {"model": "named", "prompt": "The quick", "max_tokens": 40, "ignore_eos": True, "temperature": 0}
            assert httpx.post(f"{url}/completions", json=body, timeout=60).status_code == 200
            page = httpx.get(url.replace("/v1", "/metrics")).text
            counts = [
                float(re.search(rf"spec_decode_num_{name}_tokens_total{{.*}} (\S+)", page)[1])  # type: ignore[index]
                for name in ("draft", "accepted")
            ]
            assert counts[0] == counts[1] > 20
        finally:
            server.send_signal(signal.SIGTERM)
            assert server.wait(30) == 0
            reader.join()
    assert "draft model" in "".join(said)
