"""The one address of a deployment."""

from plimsoll.operator import names
from plimsoll.operator.build.common import Object, metadata
from plimsoll.operator.snapshot import Deployment


def service(deployment: Deployment, *, leaders: bool = False, alone: bool = False) -> Object:
    """`http://NAME.NAMESPACE:8000/v1`, for pods of every revision. The status port is not in it.

    `leaders`: of groups of pods only the leaders, and single pods that have the same label, answer requests.
    `alone`: no other pod answers beside the one there is, so it gets requests while it is not ready: it has a 503 for
    them, with a time to come back. Without an endpoint a client's connection would be refused.
    """
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(deployment, deployment.name),
        "spec": {
            "type": "ClusterIP",
            "publishNotReadyAddresses": alone,
            "selector": {**names.selector(deployment.name), **({names.INDEX: names.LEADS} if leaders else {})},
            "ports": [{"name": "http", "port": names.HTTP_PORT, "targetPort": "http", "protocol": "TCP"}],
        },
    }
