"""A thousand ModelDeployments on played nodes: how soon pods are asked for, what the operator costs, what it writes.

    python -m benchmarks.operator_scale [--count 1000] [--rate 10] [--idle 300] [--output FILE.json]

Takes the cluster of KUBECONFIG, which needs nodes labelled `type=kwok` (https://kwok.sigs.k8s.io) with room for the
pods, and runs the operator as a process of this machine, for one namespace of its own (`--cluster-wide`: for all; then
no other operator may run). The source is inspected beforehand, so that what is timed is the operator and the control
plane. Steps: apply at a steady rate, rest, restart by SIGTERM, restart by SIGKILL, refusals, deletion.

Seconds are from just before an apply is sent until a watch of this process's own shows the object; writes are counted
three times: by the operator, by the API server (`--audit` names its log, if there is one), and by comparing the
resourceVersion of every object. Renewals of the lease are counted apart.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.operator_watching import (
    Audit,
    Process,
    Watch,
    api_writes,
    pages,
    percentiles,
    processor,
    samples,
    versions,
)
from e2e.cluster import Cluster, eventually
from e2e.operators import LocalOperator
from e2e.played import claim, manifest, record, unclaim
from plimsoll.checkpoint.inspecting import inspect_source
from plimsoll.cli import demo_model

DEPLOYMENTS = "/apis/plimsoll.dev/v1alpha1/namespaces/{}/modeldeployments"
POLLS = "plimsoll_status_polls_total"
GONE_SECONDS = 300.0


class Scale:
    """One run, step by step; figures gather in `found`."""

    def __init__(self, cluster: Cluster, namespace: str, settings: dict[str, Any], folder: Path, audit: Audit) -> None:
        self.cluster, self.namespace, self.audit = cluster, namespace, audit
        self.operator = LocalOperator(folder, settings)
        self.path = DEPLOYMENTS.format(namespace)
        self.found: dict[str, Any] = {}
        self.pods = Watch(cluster, f"/api/v1/namespaces/{namespace}/pods", metadata_only=True)
        self.sets = Watch(cluster, f"/apis/apps/v1/namespaces/{namespace}/replicasets", metadata_only=True)
        self.deployments = Watch(cluster, self.path)

    def start(self) -> None:
        self.operator.start()
        eventually(lambda: samples(self.operator)["plimsoll_leader"] == 1, 60, "the operator leads", every=0.2)

    def process(self) -> Process:
        assert self.operator.process is not None
        return Process(self.operator.process.pid)

    def apply(self, count: int, rate: float) -> None:
        """Asks for `count` at a steady rate, however slowly they are answered, and waits until all are Ready."""
        sent: dict[str, float] = {}
        answered: dict[str, float] = {}

        def one(name: str) -> None:
            sent[name] = time.monotonic()
            self.cluster.api("POST", f"{self.path}?fieldManager=scale", manifest(self.namespace, name))
            answered[name] = time.monotonic()

        process, audit = self.process(), self.audit.position()
        before, began = process.cpu_seconds(), time.monotonic()
        with ThreadPoolExecutor(32) as threads:
            results = []
            for index in range(count):
                time.sleep(max(0.0, began + index / rate - time.monotonic()))
                results.append(threads.submit(one, f"model-{index:04d}"))
            for result in results:
                result.result()
        asked = time.monotonic() - began
        eventually(lambda: len(self.deployments.ready) >= count, 300, f"{count} are Ready", every=0.5)
        took = time.monotonic() - began
        sets = [self.sets.of_deployment[name] - sent[name] for name in sent]
        pods = [self.pods.of_deployment[name] - sent[name] for name in sent]
        ready = [self.deployments.ready[name] - sent[name] for name in sent]
        self.found["apply"] = {
            "count": count, "rate": round(count / asked, 2), "seconds until all are Ready": round(took, 1),
            "answer": percentiles([answered[name] - sent[name] for name in sent]),
            "apply to ReplicaSet": percentiles(sets), "apply to pod": percentiles(pods),
            "apply to Ready": percentiles(ready),
            "operator cpu seconds per deployment": round((process.cpu_seconds() - before) / count, 4),
            "operator memory MiB": process.memory(), "operator writes": self.audit.writes(audit),
            "queue seconds": samples(self.operator)["plimsoll_queue_seconds_sum"] / count,
        }  # fmt: skip

    def rest(self, settle: float, seconds: float) -> None:
        """Nothing happens, and nothing should."""
        time.sleep(settle)
        process, audit = self.process(), self.audit.position()
        kept, metrics_before = versions(self.cluster, self.namespace), samples(self.operator)
        server_before, cpu = api_writes(self.cluster), process.cpu_seconds()
        began = time.monotonic()
        time.sleep(seconds)
        took = time.monotonic() - began
        cpu = process.cpu_seconds() - cpu
        metrics, server = samples(self.operator), api_writes(self.cluster)
        by_verb = {
            verb: metrics.requests(verb) - metrics_before.requests(verb)
            for verb in ("GET", "POST", "PATCH", "PUT", "DELETE")
        }
        after = versions(self.cluster, self.namespace)
        self.found["rest"] = {
            "seconds": round(took), "after settling for": settle,
            "operator cpu percent of a core": round(100 * cpu / took, 2), "operator memory MiB": process.memory(),
            "operator requests by verb (PUT renews the lease)": by_verb,
            "operator writes": self.audit.writes(audit),
            "api server writes, by anybody": {
                key: count - server_before.get(key, 0) for key, count in server.items()
                if count != server_before.get(key, 0)
            },
            "objects": len(after),
            "objects changed": sorted(key for key in {*after, *kept} if after.get(key) != kept.get(key))[:20],
            "status pages asked for": metrics.total(POLLS) - metrics_before.total(POLLS),
        }  # fmt: skip

    def restart(self, count: int, *, kill: bool) -> None:
        """Ends the operator and starts another; settled when that has looked at everything and has nothing to do."""
        before = versions(self.cluster, self.namespace)
        audit, ended = self.audit.position(), time.monotonic()
        (self.operator.kill if kill else self.operator.stop)()
        stopped = time.monotonic() - ended
        began = time.monotonic()
        self.operator.start()

        def settled() -> bool:
            now = samples(self.operator)
            looked = now["plimsoll_reconcile_seconds_count"] >= count
            return bool(looked and now["plimsoll_leader"] == 1 and now["plimsoll_queue_depth"] == 0)

        eventually(settled, 300, "the new operator has looked at everything", every=0.1)
        took = time.monotonic() - began
        time.sleep(20)
        after = versions(self.cluster, self.namespace)
        changed = {key for key in {*after, *before} if after.get(key) != before.get(key)}
        self.found["restart by SIGKILL" if kill else "restart by SIGTERM"] = {
            "seconds to end": round(stopped, 2), "seconds to settle": round(took, 2),
            "pods": sum(key.startswith("pods/") for key in after),
            "pods changed": sum(key.startswith("pods/") for key in changed),
            "other objects changed": sum(not key.startswith("pods/") for key in changed),
            "operator writes": self.audit.writes(audit), "operator memory MiB": self.process().memory(),
        }  # fmt: skip

    def refuse(self, count: int) -> None:
        """Deployments that cannot fit, all at once, among those that serve."""
        pods = len(self.pods.seen)
        names = [f"too-much-{index:02d}" for index in range(count)]
        began = time.monotonic()
        for index, name in enumerate(names):
            wish = manifest(self.namespace, name, accelerator={"resource": "cpu", "memory": f"{100 + 5 * index}Mi"})
            self.cluster.api("POST", self.path, wish)
        eventually(lambda: all(n in self.deployments.refused for n in names), 60, "all are refused", every=0.1)
        took = time.monotonic() - began
        time.sleep(10)
        events = self.cluster.api("GET", f"/api/v1/namespaces/{self.namespace}/events?limit=10000")["items"]
        told = [e.get("count", 1) for e in events if e["involvedObject"]["name"] in names]
        sums = [self.deployments.refused[name] for name in names]
        self.found["refusals"] = {
            "count": count, "seconds": round(took, 2), "pods made": len(self.pods.seen) - pods,
            "events": sum(told), "with a sum": sum("needs " in words and " = " in words for words in sums),
            "one of them": sums[0],
        }  # fmt: skip

    def delete(self) -> None:
        """All at once; the garbage collector takes what they owned."""
        began = time.monotonic()
        self.cluster.api("DELETE", self.path, timeout=120)
        eventually(lambda: not self.cluster.api("GET", f"{self.path}?limit=1")["items"], 120, "deployments are gone")

        def left() -> int:
            kept = [key for key in versions(self.cluster, self.namespace) if not key.startswith("configmaps/")]
            assert not kept, len(kept)
            return 1

        eventually(left, GONE_SECONDS, "everything they owned is gone", every=5)
        self.found["delete"] = {"seconds until nothing is left": round(time.monotonic() - began)}


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    cluster, namespace = Cluster(), f"scale-{int(time.time())}"
    cluster.api("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
    claim(cluster, namespace)
    record(cluster, namespace, inspect_source(f"file://{demo_model.fetch()}"))
    settings: dict[str, Any] = {"operatorNamespace": namespace, "leaseName": namespace}
    if not arguments.cluster_wide:
        settings["namespaces"] = [namespace]
    with tempfile.TemporaryDirectory(prefix="plimsoll-scale-") as folder:
        scale = Scale(cluster, namespace, settings, Path(folder), Audit(arguments.audit, namespace))
        if arguments.status_pages:
            pages()
        try:
            scale.start()
            scale.found["machine"] = {
                "processor": processor(), "kubernetes": cluster.version, "python": platform.python_version(),
                "operator": "whole cluster" if arguments.cluster_wide else "one namespace",
                "status pages": "answer" if arguments.status_pages else "do not answer",
            }  # fmt: skip
            scale.apply(arguments.count, arguments.rate)
            scale.rest(arguments.settle, arguments.idle)
            print(json.dumps(scale.found), file=sys.stderr, flush=True)
            scale.restart(arguments.count, kill=False)
            scale.restart(arguments.count, kill=True)
            scale.refuse(30)
            scale.delete()
        finally:
            scale.operator.stop()
            if arguments.log:
                arguments.log.write_text(scale.operator.log())
            cluster.api("DELETE", f"/api/v1/namespaces/{namespace}")
            unclaim(cluster, namespace)
            if arguments.output:
                arguments.output.write_text(json.dumps(scale.found, indent=2) + "\n")
    return scale.found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=10.0, help="applies a second")
    parser.add_argument("--settle", type=float, default=60.0, help="seconds between the last Ready and the rest")
    parser.add_argument("--idle", type=float, default=300.0, help="seconds of rest")
    parser.add_argument("--cluster-wide", action="store_true")
    parser.add_argument(
        "--status-pages", action="store_true",
        help="answer on port 8001: for clusters whose played pods have addresses of this machine",
    )  # fmt: skip
    parser.add_argument("--audit", type=Path, help="the API server's audit log, metadata of writes at least")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--log", type=Path, help="where to keep the operator's log")
    print(json.dumps(run(parser.parse_args()), indent=2))


if __name__ == "__main__":
    main()
