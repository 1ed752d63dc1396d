"""Kill or stop a random process of a group of pods at a random instant, under load, and see what is left.

    python -m benchmarks.group_kills MODEL [--pods 3] [--kills 50] [--seconds 1800]

Each pod is a `plimsoll pod` with a loopback address of its own; one that ends is started again, as the kubelet does,
and one whose status port is silent for `HUNG_SECONDS` is killed, as a liveness probe has it done after a minute.
Four clients send requests to the leader; every second request is streamed. A row of the table is one blow: seconds
until all ranks of the group are gone, and until a new group is ready. What is struck: a rank of a follower, a whole
follower, the leader's engine, and the leader's container, which cuts the requests that are in it; each by SIGKILL or
SIGSTOP. Exits 1 where a group lives longer than `GONE_SECONDS`, a request ends in
another way than an answer, a 503 or an error in its stream though the leader's container was not struck, or a process
or a port is left.
"""

import argparse
import contextlib
import json
import os
import random
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import psutil

from benchmarks.rank_kills import Clients, lives, wait

GONE_SECONDS = 5.0
READY_SECONDS = 240.0
HUNG_SECONDS = 10.0
LOOK_SECONDS = 0.05
POD = (
    "import sys; from plimsoll.runtime.engine.transport import client; client.STEADY_SECONDS = 0.0; "
    "from plimsoll.cli.main import main; main(sys.argv[1:])"
)
BLOWS = (
    ("a follower's rank", signal.SIGKILL),
    ("a follower's rank", signal.SIGSTOP),
    ("a follower", signal.SIGKILL),
    ("a follower", signal.SIGSTOP),
    ("the leader's engine", signal.SIGKILL),
    ("the leader's engine", signal.SIGSTOP),
    ("the leader", signal.SIGKILL),
    ("the leader", signal.SIGSTOP),
)


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


class Pod:
    """One container: started again whenever it ends, until `stop`."""

    def __init__(self, ordinal: int, manifest: str, leader: str, key: str, port: int, log: Path) -> None:
        self.ordinal, self.port, self.status_port = ordinal, port, free_port()
        self._environment = dict(
            os.environ,
            PLIMSOLL_DEPLOYMENT=manifest,
            PLIMSOLL_POD=f"kills-g0-{ordinal}",
            PLIMSOLL_POD_IP=f"127.0.0.{ordinal + 1}",
            PLIMSOLL_GROUP_LEADER=leader,
            PLIMSOLL_GROUP_KEY=key,
        )
        self._log = log.open("ab")
        self._stopping = False
        self.process = self._start()
        self._kubelet = threading.Thread(target=self._restart, daemon=True)
        self._kubelet.start()

    def _start(self) -> "subprocess.Popen[bytes]":
        command = [
            sys.executable, "-c", POD, "pod", "--host", "127.0.0.1", "--port", str(self.port), "--status-port",
            str(self.status_port),
        ]  # fmt: skip
        return subprocess.Popen(command, env=self._environment, stdout=self._log, stderr=self._log)

    def _restart(self) -> None:
        heard = time.monotonic() + READY_SECONDS
        while not self._stopping:
            if self.process.poll() is not None and not self._stopping:
                self.process, heard = self._start(), time.monotonic() + READY_SECONDS
            if self._live():
                heard = time.monotonic()
            elif time.monotonic() - heard > HUNG_SECONDS:
                self.process.kill()
                self.process.wait()
            time.sleep(LOOK_SECONDS)

    def _live(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.status_port}/live", timeout=1).status_code == 200
        except httpx.HTTPError:
            return False

    def stop(self) -> int:
        """Its exit status after SIGTERM."""
        self._stopping = True
        self._kubelet.join()
        self.process.terminate()
        return self.process.wait(60)

    def kill(self) -> None:
        self._stopping = True
        if self.process.poll() is None:
            self.process.kill()

    @property
    def ready(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.status_port}/ready", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def ranks(self) -> list[psutil.Process]:
        """Its processes that hold a part of the model."""
        try:
            found = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.Error:
            return []
        words = ("plimsoll.runtime.engine.transport.process", "plimsoll.runtime.engine.worker.rank_process")
        return [one for one in found if any(word in _words(one) for word in words)]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--pods", type=int, default=3)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=1800.0, help="begin no kill after so long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="strike this alone, such as `a follower`")
    asked = parser.parse_args()
    spec = {
        "model": {"source": f"file://{Path(asked.model).absolute()}", "servedName": "m"},
        "accelerator": {"resource": "cpu", "memory": "2Gi"},
        "kvCache": {"ratio": 0.05, "blockSize": 16},
        "parallelism": {"tensor": asked.pods, "nodes": asked.pods},
        "serving": {"hangTimeout": "2s"},
        "rollout": {"drainTimeout": "30s"},
        "pod": {"cpu": 1},
    }
    manifest = json.dumps({
        "apiVersion": "plimsoll.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": "kills"}, "spec": spec,
    })  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        key, group_port = Path(folder) / "key", free_port()
        key.write_text(secrets.token_hex(32))
        pods = [
            Pod(one, manifest, f"127.0.0.1:{group_port}", str(key), free_port(), Path(folder) / f"{one}.log")
            for one in range(asked.pods)
        ]
        try:
            failed = _run(asked, pods)
            ports = [group_port, *(port for pod in pods for port in (pod.port, pod.status_port))]
        finally:
            for pod in pods:
                pod.kill()
    left = [port for port in ports if _open(port)]
    print(f"left: {left or 'no'} ports")
    raise SystemExit(bool(failed or left))


def _open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _run(asked: argparse.Namespace, pods: list[Pod]) -> bool:
    seen: set[psutil.Process] = set()
    wait(lambda: all(pod.ready for pod in pods), READY_SECONDS)
    clients = Clients(f"http://127.0.0.1:{pods[0].port}", asked.seed)
    try:
        failed = strike(asked, pods, seen, clients)
    finally:
        clients.close()
    statuses = [pod.stop() for pod in reversed(pods)]
    with contextlib.suppress(SystemExit):
        wait(lambda: not any(map(lives, seen)), GONE_SECONDS)
    left = [one.pid for one in seen if lives(one)]
    print("requests:", ", ".join(f"{count} {end}" for end, count in clients.ends.most_common()))
    print(f"left: {len(left)} of {len(seen)} processes; exit statuses {statuses}")
    return bool(failed or left or any(statuses))


def strike(asked: argparse.Namespace, pods: list[Pod], seen: set[psutil.Process], clients: Clients) -> bool:
    """All blows; prints them. Returns whether one went wrong."""
    draw, began, failed = random.Random(asked.seed), time.monotonic(), False
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    print("blow  what                 signal   gone s  ready s  lost", flush=True)
    for blow in range(asked.kills):
        if time.monotonic() - began > asked.seconds:
            break
        time.sleep(draw.uniform(0.1, 1.5))
        old = [one for pod in pods for one in pod.ranks()]
        for pod in pods:
            seen |= {psutil.Process(pod.process.pid), *psutil.Process(pod.process.pid).children(recursive=True)}
        what, how = draw.choice([blow for blow in BLOWS if asked.only in (None, blow[0])])
        lost = clients.lost
        follower = pods[draw.randrange(1, len(pods))]
        if what == "a follower's rank":
            draw.choice(follower.ranks()).send_signal(how)
        elif what == "the leader's engine":
            pods[0].ranks()[0].send_signal(how)
        else:
            (follower if what == "a follower" else pods[0]).process.send_signal(how)
        gone = wait(lambda: not any(map(lives, old)), READY_SECONDS)  # noqa: B023
        ready = gone + wait(lambda: all(pod.ready for pod in pods), READY_SECONDS)
        found.setdefault((how.name, what), []).append((gone, ready))
        # With the leader's container its connections end, and new ones are refused until it listens again.
        lost = 0 if what == "the leader" else clients.lost - lost
        # A leader that is stopped holds its engine until the kubelet comes: nothing else may end what it started.
        late = gone > GONE_SECONDS + (HUNG_SECONDS + 2 if (what, how) == ("the leader", signal.SIGSTOP) else 0.0)
        failed = failed or late or lost > 0
        print(f"{blow + 1:4}  {what:20} {how.name}  {gone:7.2f}  {ready:7.2f}  {lost:4}", flush=True)
    print("\n| what | times | all ranks gone, s: median, most | ready again, s: median, most |\n|---|---|---|---|")
    for (how_name, what), times in sorted(found.items()):
        parts = [f"{statistics.median(each):.1f}, {max(each):.1f}" for each in zip(*times, strict=True)]
        print(f"| {how_name} of {what} | {len(times)} | {parts[0]} | {parts[1]} |")
    return failed


if __name__ == "__main__":
    main()
