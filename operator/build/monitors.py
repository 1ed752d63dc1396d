"""What tells Prometheus' operator where the metrics are, where that operator is there at all."""

from collections.abc import Collection

from plimsoll.operator import names
from plimsoll.operator.build.common import Object, metadata
from plimsoll.operator.settings import Settings
from plimsoll.operator.snapshot import Deployment

_API = "monitoring.coreos.com/v1"


def monitors(deployment: Deployment, apis: Collection[str], settings: Settings) -> list[Object]:
    """A PodMonitor: metrics are each pod's own, those of a pod that loads or drains included, and the Service has no
    status port. Where a cluster has only ServiceMonitors, one of them with a headless Service beside, to the same end.
    """
    labels = [names.DEPLOYMENT, names.REVISION]
    if "PodMonitor" in apis:
        return [
            {
                "apiVersion": _API,
                "kind": "PodMonitor",
                "metadata": _monitor(deployment, settings),
                "spec": {
                    "selector": {"matchLabels": dict(names.selector(deployment.name))},
                    "podTargetLabels": labels,
                    "podMetricsEndpoints": [{"port": "status", "path": "/metrics"}],
                },
            }
        ]
    if "ServiceMonitor" not in apis:
        return []
    name = f"{deployment.name}-metrics"
    only = {"plimsoll.dev/metrics": deployment.name}
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata(deployment, name, labels=only),
            "spec": {
                "clusterIP": "None",
                "publishNotReadyAddresses": True,
                "selector": dict(names.selector(deployment.name)),
                "ports": [{"name": "status", "port": names.STATUS_PORT, "targetPort": "status", "protocol": "TCP"}],
            },
        },
        {
            "apiVersion": _API,
            "kind": "ServiceMonitor",
            "metadata": _monitor(deployment, settings),
            "spec": {
                "selector": {"matchLabels": only},
                "podTargetLabels": labels,
                "endpoints": [{"port": "status", "path": "/metrics"}],
            },
        },
    ]


def _monitor(deployment: Deployment, settings: Settings) -> Object:
    found = metadata(deployment, deployment.name)
    return {**found, "labels": {**settings.monitor_labels, **found["labels"]}}
