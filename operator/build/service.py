"""The one address of a deployment."""

from plimsoll.api.deployment import ModelDeploymentSpec
from plimsoll.operator import names
from plimsoll.operator.build.common import Object, metadata
from plimsoll.operator.settings import Settings
from plimsoll.operator.snapshot import Deployment


def service(deployment: Deployment, spec: ModelDeploymentSpec, settings: Settings) -> Object:
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
