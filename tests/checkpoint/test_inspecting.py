"""`plimsoll inspect`: facts by headers alone, the same from wherever a checkpoint lies, and plain words else."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from plimsoll.api.errors import CheckpointError, PlimsollError
from plimsoll.api.inspection import MAX_BYTES, Inspection
from plimsoll.api.layer_tensors import expected_tensors
from plimsoll.checkpoint import headers
from plimsoll.checkpoint.gguf_config import llama3_divisors
from plimsoll.checkpoint.inspecting import inspect_remote, inspect_source
from plimsoll.checkpoint.open import open_checkpoint
from plimsoll.checkpoint.remote import Remote, RemoteFile
from tests.support.checkpoints import make_gguf, make_model
from tests.support.forked import finished
from tests.support.hub import Hub, running_hub
from tests.support.s3 import KEY, SECRET, Store


def inspect(home: Path, source: str, **environment: str) -> Inspection | str:
    """What the command reports: an inspection, or the words of its failure."""
    report = home / "report"
    report.write_text("")
    done = finished(["inspect", source, "--report", str(report)], home, **environment)
    words = report.read_text()
    assert "Traceback" not in done.stderr
    assert len(report.read_bytes()) <= MAX_BYTES
    for secret in (SECRET, "hf_secret"):
        assert secret not in words + done.stdout + done.stderr
    if Inspection.is_report(words):
        assert done.returncode == 0
        return Inspection.decode(words)
    assert done.returncode == 1
    assert words
    assert words in done.stderr
    return words


def found(answer: Inspection | str) -> Inspection:
    assert isinstance(answer, Inspection), answer
    return answer


def said(answer: Inspection | str) -> str:
    assert isinstance(answer, str), answer
    return answer


def test_a_folder_is_the_same_from_a_mount_a_hub_and_a_store(
    tmp_path: Path, folder: Path, folder_files: dict[str, bytes], store: Store
) -> None:
    mounted = found(inspect(tmp_path, f"file://{folder}"))
    assert mounted.facts == open_checkpoint(folder).facts
    assert mounted.bytes == sum(map(len, folder_files.values()))
    assert (mounted.path, mounted.revision) == ("", mounted.digest)

    extras = {"pytorch_model.bin": b"pickle", "modeling.py": b"code", "README.md": b"#"}
    store.put("models", {f"llama/tiny/{name}": data for name, data in (folder_files | extras).items()})
    stored = found(inspect(tmp_path, "s3://models/llama/tiny", **store.environment))
    assert stored.facts == mounted.facts
    assert (stored.digest, stored.bytes, stored.path) == (mounted.digest, mounted.bytes, "")

    with running_hub(Hub({"org/tiny": folder_files | extras})) as hub:
        pulled = found(inspect(tmp_path, "hf://org/tiny@main", HF_ENDPOINT=hub.url))
        assert pulled.facts == mounted.facts
        assert (pulled.digest, pulled.bytes, pulled.path) == (mounted.digest, mounted.bytes, "")
        assert pulled.revision == hub.commit("org/tiny")
        weights = sum(len(data) for name, data in folder_files.items() if name.endswith(".safetensors"))
        assert hub.sent.total() < weights / 5, "headers alone were read"
        assert hub.sent["tokenizer.json"] == 0


def test_a_gguf_file_is_the_same_from_a_mount_a_hub_and_a_store(tmp_path: Path, gguf: Path, store: Store) -> None:
    mounted = found(inspect(tmp_path, f"file://{gguf}"))
    assert mounted.facts == open_checkpoint(gguf).facts
    assert (mounted.path, mounted.bytes) == (gguf.name, gguf.stat().st_size)

    store.put("models", {f"q/{gguf.name}": gguf.read_bytes(), "q/README.md": b""})
    for source in (f"s3://models/q/{gguf.name}", "s3://models/q"):
        stored = found(inspect(tmp_path, source, **store.environment))
        assert (stored.facts, stored.digest, stored.path) == (mounted.facts, mounted.digest, gguf.name)

    files = {f"sub/{gguf.name}": gguf.read_bytes(), "other.gguf": b"GGUF"}
    with running_hub(Hub({"org/quants": files})) as hub:
        pulled = found(inspect(tmp_path, f"hf://org/quants@main/sub/{gguf.name}", HF_ENDPOINT=hub.url))
        assert (pulled.facts, pulled.digest, pulled.path) == (mounted.facts, mounted.digest, f"sub/{gguf.name}")


class Held(Remote):
    """Files held in memory, which keeps count of what was read of them."""

    label, revision, path = "held://", None, ""

    def __init__(self, files: dict[str, bytes], path: str = "") -> None:
        self.held, self.path, self.reads = files, path, [0]
        self.files = [RemoteFile(name, len(data), "") for name, data in files.items()]

    def _pieces(self, file: RemoteFile, start: int, stop: int) -> Iterator[bytes]:
        piece = self.held[file.name][start:stop]
        self.reads.append(len(piece))
        yield piece


def test_a_split_gguf_is_the_same_from_a_mount_a_hub_and_a_store(tmp_path: Path, store: Store) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    make_gguf(parts / "m.gguf", make_model("LlamaForCausalLM"), tensors_a_part=11)
    files = {f"q/{file.name}": file.read_bytes() for file in sorted(parts.iterdir())}
    first = next(iter(files))
    assert len(files) == 2
    mounted = found(inspect(tmp_path, f"file://{parts}"))
    store.put("split", files)
    sources = ("s3://split/q", f"s3://split/{first}")
    stored = [found(inspect(tmp_path, source, **store.environment)) for source in sources]
    with running_hub(Hub({"org/split": {**files, "q/other.gguf": b"GGUF"}})) as hub:
        stored.append(found(inspect(tmp_path, f"hf://org/split@main/{first}", HF_ENDPOINT=hub.url)))
    for seen in stored:
        assert (seen.facts, seen.digest, seen.bytes) == (mounted.facts, mounted.digest, mounted.bytes)


def test_a_long_header_of_a_gguf_is_read_piece_by_piece_and_weights_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Llama 3's table of frequencies is a tensor, and lies behind all weights in this file: it is the one that is read.
    frequencies = 10000.0 ** (-np.arange(0, 16, 2) / 16)
    table = llama3_divisors(frequencies, 8.0, 8192).astype(np.float32)
    path = make_gguf(tmp_path / "m.gguf", make_model("LlamaForCausalLM"), extra={"rope_freqs.weight": table})
    monkeypatch.setattr(headers, "FIRST_GGUF", 512)
    remote = Held({"m.gguf": path.read_bytes()}, "m.gguf")
    facts = inspect_remote(remote).facts
    assert facts == open_checkpoint(path).facts
    assert facts.rope.kind == "llama3"
    assert len(remote.reads) > 4
    assert sum(remote.reads) < path.stat().st_size / 4


def test_a_head_of_its_own_beside_a_tied_configuration_counts_from_afar_too(folder_files: dict[str, bytes]) -> None:
    config = json.loads(folder_files["config.json"]) | {"tie_word_embeddings": True}
    remote = Held(folder_files | {"config.json": json.dumps(config).encode()})
    report = inspect_remote(remote)
    assert not report.facts.tie_embeddings
    assert "lm_head.weight" in expected_tensors(report.facts)
    assert Inspection.decode(report.encode()).facts == report.facts
    assert sum(remote.reads) < sum(map(len, folder_files.values())) / 3


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100, 3000])
def test_a_header_that_was_cut_is_told_and_never_waited_for(length: int, folder: Path, gguf: Path) -> None:
    weights = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".json", ".safetensors")}
    name = min(name for name in weights if name.endswith(".safetensors"))
    for remote in (
        Held(weights | {name: weights[name][:length]}),
        Held({"m.gguf": gguf.read_bytes()[:length]}, "m.gguf"),
    ):
        with pytest.raises(CheckpointError):
            inspect_remote(remote)
        assert sum(remote.reads) < 1 << 20


def test_sizes_that_nothing_can_be_as_large_as_cost_nothing() -> None:
    # A terabyte of zeros behind a header is a sparse file; a header of a terabyte is not asked for.
    remote = Held({"config.json": b"{}", "model.safetensors": (1 << 40).to_bytes(8, "little") + b"{" * 100})
    remote.files = [replace(f, size=1 << 41) if f.name.endswith(".safetensors") else f for f in remote.files]
    with pytest.raises(CheckpointError):
        inspect_remote(remote)
    assert sum(remote.reads) < 1 << 20


def test_what_people_are_shown(tmp_path: Path, folder: Path) -> None:
    shown = finished(["inspect", f"file://{folder}"], tmp_path)
    assert shown.returncode == 0
    assert "LlamaForCausalLM" in shown.stdout
    answer = json.loads(finished(["inspect", str(folder), "-o", "json"], tmp_path).stdout)
    assert answer["digest"] == inspect_source(f"file://{folder}").digest
    assert answer["parameters"] == sum(
        len(open_checkpoint(folder).read(name).data.reshape(-1)) for name in open_checkpoint(folder).tensors
    )


def test_a_mount_is_searched_for_its_only_checkpoint(tmp_path: Path, folder: Path, gguf: Path) -> None:
    image = tmp_path / "image"
    (image / "etc").mkdir(parents=True)
    (image / "models" / "chat").mkdir(parents=True)
    assert "no safetensors or GGUF weights, but folders" in said(inspect(tmp_path, f"file://{image}"))
    (image / "models" / "chat" / "m.gguf").hardlink_to(gguf)
    assert found(inspect(tmp_path, f"file://{image}")).path == "models/chat/m.gguf"
    (image / "etc" / "spare.gguf").hardlink_to(gguf)
    assert found(inspect(tmp_path, f"file://{image}")).path == "models/chat/m.gguf", "models is where images have it"
    (image / "models" / "other").symlink_to(folder)
    (image / "models" / "second.gguf").hardlink_to(gguf)
    words = said(inspect(tmp_path, f"file://{image}"))
    assert "holds 3 checkpoints: etc/spare.gguf, models/chat/m.gguf, models/second.gguf" in words
    assert found(inspect(tmp_path, f"file://{image}/models/other")).facts == open_checkpoint(folder).facts


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("s3://absent/x", "there is no such bucket"),
        ("s3://models/nothing", "holds nothing"),
        ("s3://models/nothing.gguf", "no such file"),
        ("s3://models/pickled", "pickle runs the code"),
        ("s3://models/two", "2 GGUF files (a.gguf, b.gguf)"),
        ("s3://models/deep", "but folders: llama"),
        ("s3://models/cut", "the header describes"),
        ("s3://models/half", "shards are not in the folder"),
        ("s3://models/html", "is not a GGUF file"),
        ("s3://models/moe", "is an architecture that cannot be served"),
        ("s3://models/../x", "is not an address of the kind s3://"),
        ("gs://models/x", "is not an address of a checkpoint"),
        ("pvc://claim/x", "mounted by the cluster"),
        ("file:///nowhere/at/all", "no such file or folder"),
    ],
)
def test_failures_are_told_in_words(
    tmp_path: Path,
    folder_files: dict[str, bytes],
    store: Store,
    source: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shards = {name: data for name, data in folder_files.items() if name.endswith(".safetensors")}
    first, *others = sorted(shards)
    store.put("models", {"pickled/model.bin": b"", "two/a.gguf": b"GGUF", "two/b.gguf": b"", "deep/llama/x.json": b""})
    store.put("models", {f"cut/{n}": data[:-1] if n == first else data for n, data in folder_files.items()})
    store.put("models", {f"half/{n}": data for n, data in folder_files.items() if n not in others})
    store.put("models", {"html/a.gguf": b"<html>" * 100})
    if source.endswith("moe"):
        moe = make_gguf(tmp_path / "moe.gguf", make_model("LlamaForCausalLM"), architecture="mixtral")
        store.put("models", {"moe/a.gguf": moe.read_bytes()})
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(PlimsollError) as caught:
        inspect_source(source)
    answer = str(caught.value)
    assert words in answer
    assert "plimsoll-inspect-" not in answer, "the copy of the headers is nobody's concern"


def test_a_store_is_entered_with_keys_or_without(tmp_path: Path, folder_files: dict[str, bytes], store: Store) -> None:
    for bucket, access in (("open", "public-read"), ("models", "private")):
        store.put(bucket, {f"tiny/{name}": data for name, data in folder_files.items()}, access)
    anonymous = {"AWS_ENDPOINT_URL": store.url}
    found(inspect(tmp_path, "s3://open/tiny", **anonymous))
    assert "needs credentials, and none are given" in said(inspect(tmp_path, "s3://models/tiny", **anonymous))
    found(inspect(tmp_path, "s3://models/tiny", **store.environment))
    store.refused = True
    words = said(inspect(tmp_path, "s3://models/tiny", **store.environment))
    assert "these credentials may not read it" in words
    assert KEY not in words


def test_keys_come_from_the_environment_alone(tmp_path: Path, folder_files: dict[str, bytes], store: Store) -> None:
    store.put("models", {f"tiny/{name}": data for name, data in folder_files.items()})
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text(
        f"[default]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n"
    )
    asked = {"AWS_ENDPOINT_URL": store.url, "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{store.url}/credentials"}
    guard = {"PLIMSOLL_FORBID_LOCAL": "1", "PLIMSOLL_ALLOWED_HOSTS": "127.0.0.1"}
    # The guard tells of every attempt to ask a cloud's metadata: there is none.
    assert "none are given" in said(inspect(tmp_path, "s3://models/tiny", **asked, **guard))
    assert not [path for _, path, _ in store.requests if "credentials" in path]


def test_a_busy_store_is_asked_again(tmp_path: Path, folder_files: dict[str, bytes], store: Store) -> None:
    store.put("models", {f"tiny/{name}": data for name, data in folder_files.items()})
    store.busy = 2
    found(inspect(tmp_path, "s3://models/tiny", **store.environment))
    store.busy = 1000
    assert "is busy (SlowDown)" in said(inspect(tmp_path, "s3://models/tiny", **store.environment))


def test_services_that_do_not_answer(tmp_path: Path) -> None:
    with running_hub(Hub()) as gone:
        pass
    assert "cannot be reached" in said(inspect(tmp_path, "s3://models/x", AWS_ENDPOINT_URL=gone.url))
    assert "cannot be reached" in said(inspect(tmp_path, "hf://org/x", HF_ENDPOINT=gone.url))
    words = said(inspect(tmp_path, "s3://models/x", AWS_ENDPOINT_URL="http://user:hf_secret@host"))
    assert "is not the address of a service" in words


def test_revisions_of_a_store_follow_its_contents(tmp_path: Path, folder_files: dict[str, bytes], store: Store) -> None:
    store.put("models", {f"tiny/{name}": data for name, data in folder_files.items()})
    before = found(inspect(tmp_path, "s3://models/tiny", **store.environment))
    name = max(folder_files, key=lambda name: len(folder_files[name]))
    tuned = folder_files[name][:-8] + b"finetune"
    store.put("models", {f"tiny/{name}": tuned})
    after = found(inspect(tmp_path, "s3://models/tiny", **store.environment))
    assert before.digest == after.digest
    assert before.revision != after.revision


def test_gated_and_absent_repositories(tmp_path: Path, folder_files: dict[str, bytes]) -> None:
    with running_hub(Hub({"org/tiny": folder_files}, gated={"org/tiny"})) as hub:
        assert "is gated" in said(inspect(tmp_path, "hf://org/tiny", HF_ENDPOINT=hub.url, HF_TOKEN="hf_secret"))
        found(inspect(tmp_path, "hf://org/tiny", HF_ENDPOINT=hub.url, HF_TOKEN=hub.token))
        assert "no such repository" in said(inspect(tmp_path, "hf://org/absent", HF_ENDPOINT=hub.url))
        words = said(inspect(tmp_path, "hf://org/tiny@v9", HF_ENDPOINT=hub.url, HF_TOKEN=hub.token))
        assert "has no revision 'v9'" in words


class TestForbiddenAddresses:
    """What a pod is not to reach, whichever way a source leads there."""

    GUARD: ClassVar = {"PLIMSOLL_FORBID_LOCAL": "1"}

    def test_an_endpoint_on_this_machine(self, tmp_path: Path, store: Store) -> None:
        for url in (store.url, store.url.replace("127.0.0.1", "localhost"), store.url.replace("127.0.0.1", "0x7f.1")):
            environment = store.environment | self.GUARD | {"AWS_ENDPOINT_URL": url}
            assert "forbidden address" in said(inspect(tmp_path, "s3://models/tiny", **environment))
            words = said(inspect(tmp_path, "hf://org/tiny", HF_ENDPOINT=url, **self.GUARD))
            assert "forbidden address" in words
        assert store.requests == []

    def test_the_clouds_metadata_and_the_api_server(self, tmp_path: Path) -> None:
        for host in ("169.254.169.254", "metadata.google.internal", "10.96.0.1"):
            own = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "HF_ENDPOINT": f"http://{host}"}
            assert "forbidden address" in said(inspect(tmp_path, "hf://org/tiny", **own, **self.GUARD))

    def test_a_redirect_from_a_host_that_is_allowed(self, tmp_path: Path, folder_files: dict[str, bytes]) -> None:
        with running_hub(Hub({"org/tiny": folder_files})) as inner:
            outer = Hub({"org/tiny": folder_files}, elsewhere=inner.url.replace("127.0.0.1", "127.0.0.2"))
            with running_hub(outer):
                allowed = {"HF_ENDPOINT": outer.url, "PLIMSOLL_ALLOWED_HOSTS": "127.0.0.1"}
                words = said(inspect(tmp_path, "hf://org/tiny", **allowed, **self.GUARD))
                assert "forbidden address: 127.0.0.2" in words
            assert inner.requests == []

    def test_hosts_that_are_named_are_let_through(
        self, tmp_path: Path, folder_files: dict[str, bytes], store: Store
    ) -> None:
        store.put("models", {f"tiny/{name}": data for name, data in folder_files.items()})
        for allowed in ("127.0.0.1", "127.0.0.0/8", "other.example, localhost"):
            environment = store.environment | self.GUARD | {"PLIMSOLL_ALLOWED_HOSTS": allowed}
            found(inspect(tmp_path, "s3://models/tiny", **environment))
