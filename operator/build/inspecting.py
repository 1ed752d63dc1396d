"""The short pod that reads a source's headers, and where its findings are kept.

Both belong to a source of a namespace and to none of its deployments: a thousand of them look at one model once.
"""

from collections.abc import Mapping
from typing import Any

from plimsoll.api.inspection import Inspection
from plimsoll.api.source import parse_source
from plimsoll.operator.build.common import Object, pod_security, source_metadata
from plimsoll.operator.build.pod import Spec, copied_folder, copier, image_volume, placement, reader, scratch
from plimsoll.operator.build.source import fetched, file_uri, image_reference, source_key
from plimsoll.operator.settings import Settings
from plimsoll.operator.snapshot import Deployment

SOURCE = "/source"
#: Headers alone are read. Longer than any hub takes, pulling the runtime image included.
DEADLINE_SECONDS = 600
_DATA = "inspection"


def inspect_name(key: str) -> str:
    """Of the pod that looks at a source."""
    return f"plimsoll-inspect-{key}"


def record_name(key: str) -> str:
    """Of the ConfigMap that keeps what it found."""
    return f"plimsoll-source-{key}"


def inspect_pod(
    deployment: Deployment, spec: Spec, settings: Settings, image_volumes: bool, key: str | None = None
) -> Object:
    """Runs `plimsoll inspect`; its termination message is an `Inspection`, or says in words why there is none.

    `key` is the source's own, but for what a quantization job wrote: that goes by its digest too.
    It tolerates what the deployment tolerates, and does not take its node selector: that would wake a GPU node for
    reading a few kilobytes.
    """
    model, source = spec.model, parse_source(spec.model.source)
    key = key or source_key(deployment.namespace, model)
    look = reader("inspect", spec, settings)
    volumes, init, secret, uri = [scratch()], [], None, model.source
    if not fetched(source):
        uri, secret = file_uri(SOURCE, source.path), model.credentials_secret if source.scheme == "oci" else None
        mount: Object = {"name": "source", "mountPath": SOURCE, "readOnly": True}
        if source.scheme == "pvc":
            claim = {"claimName": source.name, "readOnly": True}
            volumes.append({"name": "source", "persistentVolumeClaim": claim})
        elif image_volumes:
            volumes.append(image_volume("source", image_reference(source)))
        else:
            volumes.append({"name": "source", "emptyDir": {}})
            init.append(copier("copy", source, "source"))
            mount["mountPath"] = f"{SOURCE}/{copied_folder(source)}"
        look["volumeMounts"].append(mount)
    look["args"] = ["inspect", uri, "--report", "/dev/termination-log"]
    body: Object = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": DEADLINE_SECONDS,
        "terminationGracePeriodSeconds": 5,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod_security(),
        "containers": [look],
        "volumes": volumes,
        **placement(spec, settings, secret),
    }
    if init:
        body["initContainers"] = init
    meta = source_metadata(deployment.namespace, inspect_name(key), key)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": body}


def record(namespace: str, key: str, inspection: Inspection) -> Object:
    """A ConfigMap, so that it outlives the pod, the operator and the deployment that asked first."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": source_metadata(namespace, record_name(key), key),
        "data": {_DATA: str(inspection.encode(), "ascii")},
    }


def read_record(config_map: Mapping[str, Any]) -> Inspection:
    """What `record` kept.

    Raises:
        CheckpointError: somebody damaged it.
    """
    return Inspection.decode((config_map.get("data") or {}).get(_DATA) or "")
