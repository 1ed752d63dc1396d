"""What a pod that fetches must not reach, tried in a process with the guard on: sockets, names, redirects, proxies."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.guarded import API, METADATA
from tests.support.hostile_server import Answer, Hostile, hostile_server

TOKEN = "hf_for_the_hub_alone"
FORBIDDEN = (METADATA, f"::ffff:{METADATA}", "2852039166", "0xA9FEA9FE", "fd00:ec2::254", "rebound.example",
             "mapped.example", API, f"::ffff:{API}", "api.example")  # fmt: skip
#: What a hub says when it is asked for a repository of this name: go there.
REDIRECTS = {
    "to/metadata": f"http://{METADATA}/latest/api/token", "to/number": "http://2852039166/latest",
    "to/mapped": f"http://[::ffff:{METADATA}]/latest", "to/rebound": "http://rebound.example/latest",
    "to/api": f"https://{API}/api/v1/secrets", "to/resolved-api": "http://api.example/api/v1/secrets",
    "to/cluster": "http://kubernetes.default.svc/api", "to/local": "http://localhost:8001/drain",
}  # fmt: skip


def redirected(path: str) -> Answer:
    where = next(url for name, url in REDIRECTS.items() if f"/{name}/" in path)
    return Answer(b"", 307, (("Location", where),))


def outcomes(**environment: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    given = {
        **kept, "PLIMSOLL_FORBID_LOCAL": "1", "PLIMSOLL_ALLOWED_HOSTS": "127.0.0.1", "KUBERNETES_SERVICE_HOST": API,
        "HF_TOKEN": TOKEN, "SOURCES": " ".join(REDIRECTS), "HF_HUB_DISABLE_TELEMETRY": "1", **environment,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.guarded"], env=given, cwd=Path(__file__).parents[2],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def hub() -> Iterator[Hostile]:
    """Sends each of `REDIRECTS` elsewhere."""
    with hostile_server(redirected) as server:
        yield server


@pytest.fixture(scope="module")
def tried(hub: Hostile) -> dict[str, str]:
    return outcomes(HF_ENDPOINT=hub.url)


def test_every_way_to_a_forbidden_address_is_refused_when_it_is_connected_to(tried: dict[str, str]) -> None:
    for host in FORBIDDEN:
        assert "refused: " in tried[f"connect {host}"], host
    for host in (METADATA, API):
        assert "refused: " in tried[f"connect_ex {host}"], host


def test_datagrams_to_a_forbidden_address_are_refused(tried: dict[str, str]) -> None:
    for host in (METADATA, API, f"::ffff:{METADATA}", "fd00:ec2::254"):
        for how in ("sendmsg", "sendto"):
            assert "refused: " in tried[f"{how} {host}"], (how, host)


def test_the_api_servers_address_is_named_as_such_and_others_are_let_through(tried: dict[str, str]) -> None:
    for case in ("connect", "connect_ex", "sendmsg", "sendto"):
        assert f"{API} is the cluster's API server" in tried[f"{case} {API}"]
    passed = {case.partition(" ")[2] for case, said in tried.items() if said == "let through"}
    assert passed == {"203.0.113.10", "127.0.0.1"}


def test_a_redirect_of_a_hub_to_a_forbidden_address_is_refused_by_name(tried: dict[str, str], hub: Hostile) -> None:
    for name in REDIRECTS:
        assert "leads to a forbidden address" in tried[f"hub {name}"], name
        assert TOKEN not in tried[f"hub {name}"]
    assert {path.split("/models/")[1].split("/revision")[0] for path, _ in hub.seen} == set(REDIRECTS)
    assert all(headers["authorization"] == f"Bearer {TOKEN}" for _, headers in hub.seen)


def test_a_proxy_is_asked_for_no_forbidden_address_and_gets_no_token_for_another_host() -> None:
    """A proxy looks names up itself: what is written has to be judged before it is sent."""
    with hostile_server(redirected) as proxy:
        tried = outcomes(HF_ENDPOINT="http://hub.example", HTTP_PROXY=proxy.url, HTTPS_PROXY=proxy.url)
    asked = [path for path, _ in proxy.seen]
    for name in ("to/metadata", "to/number", "to/mapped", "to/api", "to/cluster", "to/local"):
        assert "leads to a forbidden address" in tried[f"hub {name}"], name
    # A name of which only the proxy learns the address is the proxy's to judge, and gets no token.
    there = [(path, headers) for path, headers in proxy.seen if not path.startswith("http://hub.example/")]
    assert {path.split("/")[2] for path, _ in there} <= {"rebound.example", "api.example"}
    assert all("authorization" not in headers for _, headers in there)
    assert len(asked) - len(there) >= len(REDIRECTS)
