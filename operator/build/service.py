"""The one address of a deployment."""

from plimsoll.operator import names
from plimsoll.operator.build.common import Object, metadata
from plimsoll.operator.snapshot import Deployment


def service(deployment: Deployment) -> Object:
    """`http://NAME.NAMESPACE:8000/v1`, for pods of every revision. The status port is not in it."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(deployment, deployment.name),
        "spec": {
            "type": "ClusterIP",
            "selector": dict(names.selector(deployment.name)),
            "ports": [{"name": "http", "port": names.HTTP_PORT, "targetPort": "http", "protocol": "TCP"}],
        },
    }
