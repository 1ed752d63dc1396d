"""The short pod that reads a source's headers, and where its findings are kept.

Both belong to a source of a namespace and to none of its deployments: a thousand of them look at one model once.
"""

from plimsoll.api.inspection import Inspection
from plimsoll.api.source import parse_source
from plimsoll.operator import names
from plimsoll.operator.build.common import Object, plain, source_metadata
from plimsoll.operator.build.pod import Spec, copied_folder, copier, image_volume, placement, reader, scratch
from plimsoll.operator.build.source import fetched, file_uri, image_reference, source_key
from plimsoll.operator.build.surroundings import authority_volumes
from plimsoll.operator.settings import Settings
from plimsoll.operator.snapshot import Deployment, Pod

SOURCE = "/source"
#: Headers alone are read. Longer than any hub takes, pulling the runtime image included.
DEADLINE_SECONDS = 600
#: Seconds that a pod which does not get to work is left before another's takes its place: twice as long each time.
LEAST_PATIENCE, MOST_PATIENCE = 10.0, 300.0


def inspect_name(key: str) -> str:
    """Of the pod that looks at a source."""
    return f"plimsoll-inspect-{key}"


def record_name(key: str) -> str:
    """Of the ConfigMap that keeps what it found."""
    return f"plimsoll-source-{key}"


def inspect_pod(
    deployment: Deployment, spec: Spec, settings: Settings, image_volumes: bool, key: str | None = None,
    instead_of: Pod | None = None,
) -> Object:  # fmt: skip
    """Runs `plimsoll inspect`; its termination message is an `Inspection`, or says in words why there is none.

    `key` is the source's own, but for what a quantization job wrote: that goes by its digest too.
    It has the labels, annotations, node selector and tolerations of the deployment's pods: meshes, policies and
    architectures hold for it as well.

    The one that it is made `instead_of` may take a while to go, so that this one has another name: one of two, so that
    there are never more.
    """
    model, source = spec.model, parse_source(spec.model.source)
    key = key or source_key(deployment.namespace, model)
    look = reader("inspect", spec, settings)
    volumes, init, secret, uri = [scratch(), *authority_volumes(spec)], [], None, model.source
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
            init.append(copier("copy", source, "source", spec))
            mount["mountPath"] = f"{SOURCE}/{copied_folder(source)}"
        look["volumeMounts"].append(mount)
    look["args"] = ["inspect", uri, "--report", "/dev/termination-log"]
    body: Object = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": DEADLINE_SECONDS,
        "terminationGracePeriodSeconds": 5,
        "containers": [look],
        "volumes": volumes,
        **placement(spec, settings, secret),
    }
    if "affinity" in body:
        # Affinity to pods is about replicas.
        body["affinity"] = {key: value for key, value in body["affinity"].items() if key == "nodeAffinity"}
    if init:
        body["initContainers"] = init
    tags = {"labels": plain(spec.pod.labels), "annotations": plain(spec.pod.annotations)}
    looks = names.digest({**body, **{name: value for name, value in tags.items() if value}})
    name, patience = inspect_name(key), LEAST_PATIENCE
    if instead_of is not None:
        name = f"{name}-again" if instead_of.name == name else name
        patience = instead_of.patience or LEAST_PATIENCE
        patience = patience if instead_of.looks_as == looks else min(MOST_PATIENCE, 2 * patience)
    meta = source_metadata(deployment.namespace, name, key)
    meta["labels"] = {**tags["labels"], **meta["labels"]}
    default = {"kubectl.kubernetes.io/default-container": look["name"]} if tags["annotations"] else {}
    ours = {names.LOOKS_AS: looks, names.PATIENCE: f"{patience:.0f}"}
    meta["annotations"] = {**default, **tags["annotations"], **ours}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": body}


def looks_as(pod: Object) -> str:
    """What tells inspect pods apart that would look in different ways."""
    return str(pod["metadata"]["annotations"][names.LOOKS_AS])


def record(namespace: str, key: str, inspection: Inspection) -> Object:
    """A ConfigMap, so that it outlives the pod, the operator and the deployment that asked first."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": source_metadata(namespace, record_name(key), key),
        "data": {names.REPORT: str(inspection.encode(), "ascii")},
    }
