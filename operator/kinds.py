"""Kinds of objects the operator reads and writes, and where the API server keeps them."""

from dataclasses import dataclass

from plimsoll.operator.names import GROUP, JOBS_PLURAL, OURS, PLURAL, VERSION


@dataclass(frozen=True)
class Kind:
    """One resource of the API server."""

    name: str
    """As in an object's `kind`."""
    group: str
    version: str
    plural: str
    namespaced: bool = True
    selector: str | None = OURS
    """Which of them are watched, on the server's side; None: all."""

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def root(self) -> str:
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """The address of one object or, without `name`, of the collection."""
        where = f"/namespaces/{namespace}" if namespace and self.namespaced else ""
        return f"{self.root}{where}/{self.plural}" + (f"/{name}" if name else "") + (
            f"/{subresource}" if subresource else ""
        )  # fmt: skip


DEPLOYMENT = Kind("ModelDeployment", GROUP, VERSION, PLURAL, selector=None)
QUANTIZATION = Kind("QuantizationJob", GROUP, VERSION, JOBS_PLURAL, selector=None)
JOB = Kind("Job", "batch", "v1", "jobs")
CLAIM = Kind("PersistentVolumeClaim", "", "v1", "persistentvolumeclaims")
REPLICA_SET = Kind("ReplicaSet", "apps", "v1", "replicasets")
STATEFUL_SET = Kind("StatefulSet", "apps", "v1", "statefulsets")
POD = Kind("Pod", "", "v1", "pods")
SERVICE = Kind("Service", "", "v1", "services")
ENDPOINT_SLICE = Kind("EndpointSlice", "discovery.k8s.io", "v1", "endpointslices")
CONFIG_MAP = Kind("ConfigMap", "", "v1", "configmaps")
BUDGET = Kind("PodDisruptionBudget", "policy", "v1", "poddisruptionbudgets")
POLICY = Kind("NetworkPolicy", "networking.k8s.io", "v1", "networkpolicies")
NODE = Kind("Node", "", "v1", "nodes", namespaced=False, selector=None)
SERVICE_MONITOR = Kind("ServiceMonitor", "monitoring.coreos.com", "v1", "servicemonitors")
POD_MONITOR = Kind("PodMonitor", "monitoring.coreos.com", "v1", "podmonitors")
EVENT = Kind("Event", "", "v1", "events")
#: Created and never read.
SECRET = Kind("Secret", "", "v1", "secrets")
LEASE = Kind("Lease", "coordination.k8s.io", "v1", "leases")

#: Watched in every cluster, in the order they are listed at start.
WATCHED = (DEPLOYMENT, REPLICA_SET, STATEFUL_SET, POD, SERVICE, ENDPOINT_SLICE, CONFIG_MAP, BUDGET, POLICY)
#: Watched where the cluster has them: other projects' kinds, and ours that an older chart did not bring.
OPTIONAL = (SERVICE_MONITOR, POD_MONITOR, QUANTIZATION, JOB)
#: What we make for a deployment or a job beside pods: the planner compares them with what should be there.
CHILDREN = (REPLICA_SET, STATEFUL_SET, SERVICE, BUDGET, POLICY, SERVICE_MONITOR, POD_MONITOR, JOB)
BY_NAME = {kind.name: kind for kind in (*WATCHED, NODE, *OPTIONAL, EVENT, SECRET, LEASE)}
