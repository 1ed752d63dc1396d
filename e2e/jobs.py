"""QuantizationJobs as tests write and watch them."""

import threading
from collections.abc import Mapping
from typing import Any

from e2e.cluster import SERVING, Cluster, Object, eventually

JOB = "plimsoll.dev/quantization-job"


class QuantizationJob:
    """One quantization job in the cluster."""

    def __init__(self, cluster: Cluster, namespace: str, name: str) -> None:
        self.cluster, self.namespace, self.name = cluster, namespace, name

    @property
    def status(self) -> Object:
        found = self.cluster.get("quantizationjobs", self.namespace, self.name)
        assert found is not None, f"{self.name} is gone"
        return found.get("status", {})

    def condition(self, kind: str) -> Object:
        return next((c for c in self.status.get("conditions", []) if c["type"] == kind), {})

    def wait(self, kind: str, seconds: float = SERVING) -> Object:
        """Returns the condition once it is True; that the other end was reached is said at once."""
        other = {"Complete": "Failed", "Failed": "Complete"}.get(kind)

        def look() -> Object | None:
            found = self.condition(kind)
            assert found.get("status") == "True" or self.condition(other or "").get("status") != "True", self.words()
            return found if found.get("status") == "True" else None

        return eventually(look, seconds, f"{self.name}: {kind}; {self.words()}")

    def words(self) -> str:
        status = self.status
        head = f"{status.get('phase')} {status.get('progress')}: {status.get('message')}"
        return "\n".join([head, *(f"{c['type']}={c['status']} {c['reason']}" for c in status.get("conditions", []))])

    def pods(self) -> list[Object]:
        """Oldest first."""
        found = self.cluster.find("pods", self.namespace, labelSelector=f"{JOB}={self.name}")
        return sorted(found, key=lambda pod: pod["metadata"]["creationTimestamp"])

    def evict(self) -> str:
        """Its running pod, as `kubectl drain` does it; returns the pod's uid."""
        (pod,) = (one for one in self.pods() if one["status"].get("phase") == "Running")
        meta = pod["metadata"]
        path = f"/api/v1/namespaces/{self.namespace}/pods/{meta['name']}/eviction"
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": meta["name"]}}
        self.cluster.api("POST", path, eviction)
        return str(meta["uid"])

    def end_without_pod(self, seconds: float) -> None:
        """Deletes its pod as soon as that has succeeded, as the end of a node may, and waits until its Job is over."""
        name = self.status["job"]

        def over() -> bool:
            pods = self.pods()
            for pod in pods:
                if pod["status"].get("phase") == "Succeeded" and "deletionTimestamp" not in pod["metadata"]:
                    self.cluster.delete("pods", self.namespace, pod["metadata"]["name"])
            job = self.cluster.get("jobs", self.namespace, name) or {}
            ends = [one["type"] for one in job.get("status", {}).get("conditions", []) if one["status"] == "True"]
            return not pods and "Complete" in ends

        eventually(over, seconds, f"Job {name} is complete and its pod is gone", every=0.1)

    def delete(self) -> None:
        self.cluster.delete("quantizationjobs", self.namespace, self.name)


class Watched:
    """Follows a job's `status.progress` in a thread."""

    def __init__(self, job: QuantizationJob) -> None:
        self._job, self._ended = job, threading.Event()
        self.seen: list[Object] = []
        """Each value that was there, in its order."""
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        while not self._ended.wait(0.5):
            try:
                found = self._job.status.get("progress")
            except AssertionError:
                return  # The job is gone: its scenario has failed.
            if found and self.seen[-1:] != [found]:
                self.seen.append(found)

    def end(self) -> list[Object]:
        self._ended.set()
        self._thread.join(30)
        return self.seen

    def check(self) -> None:
        """Asserts that it moved, never back, and said how long it would still take."""
        percents = [one["percent"] for one in self.seen]
        assert percents == sorted(percents), percents
        assert len(set(percents)) >= 10, percents
        under_way = [one for one in self.seen if 10 <= one["percent"] < 95]
        assert sum("eta" in one for one in under_way) >= len(under_way) / 2, self.seen


def job_manifest(namespace: str, name: str, spec: Mapping[str, Any]) -> Object:
    return {
        "apiVersion": "plimsoll.dev/v1alpha1",
        "kind": "QuantizationJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": dict(spec),
    }
