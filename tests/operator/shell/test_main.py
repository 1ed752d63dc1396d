"""The process from outside: its configuration, its health, its signals."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from plimsoll.operator import kinds
from plimsoll.operator.health import Health
from plimsoll.operator.main import Operator, source_key
from plimsoll.operator.metrics import Metrics
from plimsoll.operator.settings import Settings
from tests.support.addresses import has_ipv6

COMMAND = [sys.executable, "-m", "plimsoll.operator.main"]


def operator(config: Path | None, **environment: str) -> subprocess.Popen[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("KUBE", "PLIMSOLL_OPERATOR"))}
    command = [*COMMAND, *(["--config", str(config)] if config else [])]
    return subprocess.Popen(
        command, env={**clean, "HOME": "/nonexistent", **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def kubeconfig(folder: Path, server: str) -> Path:
    """A file that leads to `server`, without credentials."""
    found = {
        "apiVersion": "v1", "kind": "Config", "current-context": "c", "users": [{"name": "u", "user": {}}],
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    }  # fmt: skip
    (folder / "kubeconfig").write_text(yaml.safe_dump(found))
    return folder / "kubeconfig"


@pytest.mark.parametrize(
    ("text", "words"),
    [("workers: many", "workers"), ("[", "cannot be read"), ("wrokers: 3", "wrokers"), ("workers: 0", "workers")],
)
def test_a_wrong_configuration_is_one_line_and_status_2(tmp_path: Path, text: str, words: str) -> None:
    config = tmp_path / "operator.yaml"
    config.write_text(text)
    process = operator(config)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.startswith("error: ")
    assert words in err
    assert "Traceback" not in err
    assert out == ""


def test_no_cluster_to_connect_to_is_one_line_and_status_2(tmp_path: Path) -> None:
    process = operator(None, KUBECONFIG=str(tmp_path / "none"))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "no cluster to connect to" in err
    assert "Traceback" not in err


def test_without_our_kind_it_says_so_and_waits_and_ends_when_told(tmp_path: Path, api: Any) -> None:
    (tmp_path / "operator.yaml").write_text("healthPort: 0\n")
    process = operator(tmp_path / "operator.yaml", KUBECONFIG=str(kubeconfig(tmp_path, api.url)))
    assert process.stderr is not None
    lines = [json.loads(process.stderr.readline()) for _ in range(2)]
    assert lines[0]["event"] == "starting"
    assert "apply crds/" in lines[1]["event"]
    process.send_signal(signal.SIGTERM)
    _, rest = process.communicate(timeout=30)
    assert process.returncode == 0
    assert json.loads(rest.splitlines()[-1])["event"] == "ended"


def fetch(port: int, path: str, address: str = "127.0.0.1") -> tuple[int, str]:
    host = f"[{address}]" if ":" in address else address
    try:
        with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture
def wired(api: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Operator:
    """All parts of the process, none of them started, its caches filled a moment ago."""
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path, api.url)))
    found = Operator(Settings(health_port=0))
    found._filled = True
    found.watches.kinds = (kinds.POD,)
    found.watches.opened = {"Pod": time.monotonic()}
    found.cluster.answered_at = time.monotonic()
    return found


def test_a_healthy_process_has_nothing_wrong(wired: Operator) -> None:
    assert wired.alive() == []
    assert wired.ready() == []
    wired.watches.kinds = (kinds.POD, kinds.NODE)
    assert wired.ready() == ["waiting for the watches"]


def test_a_dead_watch_is_noticed_unless_the_api_server_is_away(wired: Operator) -> None:
    wired.watches.opened = {"Pod": time.monotonic() - 1000}
    assert "watch of Pod is 1000 s old" in wired.alive()[0]
    wired.cluster.answered_at = time.monotonic() - 90
    assert wired.alive() == []


def test_a_watch_that_keeps_missing_changes_is_noticed(wired: Operator) -> None:
    wired.verifier.missed = {"Pod": 3}
    assert wired.alive() == ["the watch of Pod keeps missing changes"]


def test_a_hanging_worker_and_a_stuck_loop_are_noticed(wired: Operator) -> None:
    wired.queue.longest_running = lambda: 301.0  # type: ignore[method-assign]
    wired._beat = time.monotonic() - 61
    assert [words.split(" has been")[0] for words in wired.alive()] == ["the event loop", "a worker"]


def test_health_tells_what_is_wrong() -> None:
    wrong: list[str] = []
    refreshed: list[int] = []
    health = Health(0, Metrics(), lambda: wrong, lambda: ["waiting"], lambda: refreshed.append(1))
    health.start()
    assert fetch(health.port, "/healthz") == (200, '{"ok": true, "wrong": []}\n')
    wrong.append("the watch of Pod is 900 s old")
    assert fetch(health.port, "/healthz")[0] == 503
    assert "900 s" in fetch(health.port, "/healthz")[1]
    assert fetch(health.port, "/readyz?verbose")[0] == 503
    status, text = fetch(health.port, "/metrics")
    assert (status, refreshed) == (200, [1])
    assert "plimsoll_reconcile_seconds_bucket" in text
    assert fetch(health.port, "/elsewhere")[0] == 404
    head = urllib.request.Request(f"http://127.0.0.1:{health.port}/metrics", method="HEAD")
    with urllib.request.urlopen(head, timeout=10) as answer:
        assert (answer.status, answer.read()) == (200, b"")
    health.stop()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_health_is_asked_over_both_families(address: str) -> None:
    if address == "::1" and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    health = Health(0, Metrics(), list, list, lambda: None)
    health.start()
    assert fetch(health.port, "/healthz", address)[0] == 200
    with pytest.raises(OSError, match="in use"):
        Health(health.port, Metrics(), list, list, lambda: None)
    health.stop()


@pytest.mark.parametrize("spec", [{}, {"model": None}, {"model": {}}, {"model": {"source": 5}}])
def test_a_spec_that_names_no_source_has_no_key(spec: Any) -> None:
    assert source_key("ns", spec) is None


def test_the_same_source_has_the_same_key_in_a_namespace(real: Callable[[str], dict[str, Any]]) -> None:
    spec = real("deployment")["spec"]
    assert source_key("ns", spec) == source_key("ns", {**spec, "replicas": 7})
    assert source_key("ns", spec) != source_key("other", spec)
