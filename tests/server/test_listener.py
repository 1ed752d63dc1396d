"""What is listened on: a pod takes both families, a laptop what it was told."""

import inspect
import socket

import pytest

from plimsoll.api.errors import SpecError
from plimsoll.cli.pod import pod
from plimsoll.cli.serve import serve
from plimsoll.cli.up import up
from plimsoll.runtime.server.listener import listen
from tests.support.addresses import has_ipv6


def default(command: object, option: str) -> str:
    assert callable(command)
    return str(inspect.signature(command).parameters[option].default)


def reached(listener: socket.socket, address: str) -> bool:
    try:
        socket.create_connection((address, listener.getsockname()[1]), timeout=30).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_pod_listens_on_both_families(address: str) -> None:
    if address == "::1" and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    with listen(default(pod, "host"), 0) as listener:
        assert reached(listener, address)


def test_a_pod_listens_on_ipv4_where_there_is_no_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_ipv6", False)
    with listen("::", 0) as listener:
        assert listener.family is socket.AF_INET
        assert reached(listener, "127.0.0.1")


@pytest.mark.parametrize(("command", "option"), [(up, "host"), (serve, "server_name")])
def test_a_laptop_listens_on_loopback_alone(command: object, option: str) -> None:
    assert default(command, option) == "127.0.0.1"
    with listen("127.0.0.1", 0) as listener:
        assert not reached(listener, "::1")
        assert not reached(listener, "127.0.0.2")


@pytest.mark.parametrize("host", ["::", "0.0.0.0", "127.0.0.1"])
def test_a_port_that_is_taken_names_the_option(host: str) -> None:
    with listen(host, 0) as taken, pytest.raises(SpecError, match=r"status-port.*cannot listen on"):
        listen(host, taken.getsockname()[1], "status-port")


def test_a_name_that_is_none_is_named() -> None:
    with pytest.raises(SpecError, match="server-name"):
        listen("no such host", 0)
