"""What of a pod is the cluster's business: limits, identities, proxies, authorities, spreading."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from plimsoll.api import rules
from plimsoll.api.fields import CPU_SCHEMA, Memory, ObjectName, Part, parse_processors
from plimsoll.api.quantity import parse_quantity
from plimsoll.api.rules import RULES


def millicpus(amount: str | int | float) -> int:
    """Thousandths of a processor, rounded up."""
    return int((parse_quantity(amount) * 1000).to_integral_value(rounding="ROUND_CEILING"))


def cpu_text(thousandths: int) -> str:
    """As the API server writes it: 2, or 1500m."""
    return f"{thousandths}m" if thousandths % 1000 else str(thousandths // 1000)


def _cpu(value: Any) -> str:
    # Refuses what is none, in the words that pod.cpu has.
    parse_processors(value)
    return cpu_text(millicpus(value))


CpuAmount = Annotated[str, BeforeValidator(_cpu), CPU_SCHEMA]
"""Processors for the scheduler and the kernel, in one spelling."""


class Limits(Part):
    """Limits of each container, where a ResourceQuota or a LimitRange of the namespace asks for them."""

    cpu: CpuAmount | None = None
    """CPU limit, such as 4 or 1500m, at least pod.cpu. Containers that fetch or inspect get it too, 1 at most. Default:
    the threads of pod.cpu where that is set, else no limit."""
    ephemeral_storage: Memory | None = None
    """Limit of local disk, such as 20Gi; with hf:// and s3:// without cacheClaim it must hold the checkpoint. Default:
    no limit."""


#: Kubernetes knows larger IDs; kernels do not.
_Id = Annotated[int, Field(ge=1, le=(1 << 31) - 1)]


class SecurityContext(Part):
    """Who the pod's processes are. Everything else of the `restricted` Pod Security Standard is fixed."""

    model_config = ConfigDict(json_schema_extra={RULES: rules.SECURITY})

    assigned_by_cluster: bool = False
    """Write no user or group ID into pods: an admission policy assigns them, as OpenShift's restricted-v2 does."""
    run_as_user: _Id | None = None
    """User ID of the containers. Default: 65532."""
    run_as_group: _Id | None = None
    """Group ID of the containers. Default: 65532."""
    fs_group: _Id | None = None
    """Group that owns volumes the pod may write to. Default: 65532."""
    supplemental_groups: list[_Id] = Field(default_factory=list, max_length=32)
    """More groups of the containers, for volumes that only a group may read."""

    @model_validator(mode="after")
    def _one(self) -> "SecurityContext":
        given = (self.run_as_user, self.run_as_group, self.fs_group)
        if self.assigned_by_cluster and any(one is not None for one in given):
            raise ValueError(rules.SECURITY_WORDS)
        return self


_ProxyAddress = Annotated[str, Field(max_length=512, pattern=r"^https?://[^\s/@?#]+/?$")]


class Proxy(Part):
    """The proxy through which containers reach hubs and buckets. The server itself reaches nothing."""

    http: _ProxyAddress | None = None
    """Proxy for http:// addresses, such as http://proxy.example.com:3128, without a user or password (HTTP_PROXY)."""
    https: _ProxyAddress | None = None
    """Proxy for https:// addresses (HTTPS_PROXY)."""
    no_proxy: Annotated[str, Field(max_length=4096, pattern=r"^[^\s]*$")] = ""
    """Hosts, domains and address ranges that are reached without a proxy, with commas between. Addresses of the cluster
    (.svc, .cluster.local) and of the pod are always among them (NO_PROXY)."""


class CaBundle(Part):
    """Certificate authorities that are trusted beside the usual ones when a checkpoint or dataset is fetched."""

    config_map: ObjectName
    """A ConfigMap of this namespace with the certificates in PEM."""
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._A-Za-z0-9]+$")] = "ca-bundle.crt"
    """The key of the ConfigMap."""


class Spread(Part):
    """How pods of a revision are spread over parts of the cluster, as topologySpreadConstraints of a pod. The labels
    that select these pods are filled in."""

    model_config = ConfigDict(json_schema_extra={RULES: rules.SPREAD})

    topology_key: Annotated[str, Field(min_length=1, max_length=316)]
    """Label of nodes that names the part, such as topology.kubernetes.io/zone."""
    max_skew: Annotated[int, Field(ge=1, le=1000)] = 1
    """How many more pods one part may have than another."""
    when_unsatisfiable: Literal["ScheduleAnyway", "DoNotSchedule"] = "ScheduleAnyway"
    """Whether a pod that would break this is placed all the same, or waits."""
    min_domains: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Parts that are counted at least, for DoNotSchedule."""

    @model_validator(mode="after")
    def _coherent(self) -> "Spread":
        if self.min_domains is not None and self.when_unsatisfiable != "DoNotSchedule":
            raise ValueError(rules.SPREAD_WORDS)
        return self
