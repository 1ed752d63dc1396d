"""Names and labels the operator writes. They are a contract with running clusters: none may change its meaning."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from plimsoll.api.deployment import API_VERSION

GROUP, VERSION = API_VERSION.split("/")
PLURAL = "modeldeployments"
JOBS_PLURAL = "quantizationjobs"
#: Server-side apply's field manager: the owner of every field we set.
FIELD_MANAGER = "plimsoll"

MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "plimsoll"
#: On every object of a deployment; the Service, budgets and policies select pods by it.
DEPLOYMENT = "plimsoll.dev/deployment"
#: On ReplicaSets and their pods: what restarts a pod when it changes, hashed.
REVISION = "plimsoll.dev/revision"
#: On StatefulSets, their pods and their policies: which group of pods it is, by the StatefulSet's name.
OF_GROUP = "plimsoll.dev/group"
#: On pods of StatefulSets, by Kubernetes: the pod's number. On single pods, by us: 0, for they answer requests as well.
INDEX = "apps.kubernetes.io/pod-index"
LEADS = "0"
#: On every object of a quantization job.
JOB = "plimsoll.dev/quantization-job"
#: `server`, `inspect` or `quantize`: which of our pods it is.
COMPONENT = "plimsoll.dev/component"
#: On inspect pods and records: which source, hashed.
SOURCE = "plimsoll.dev/source"

#: Annotations of a ReplicaSet.
NUMBER = "plimsoll.dev/revision-number"
BUILT_BY = "plimsoll.dev/built-by"
"""The operator version that rendered the pod template; another one leaves the template alone."""
SPEC = "plimsoll.dev/spec"
"""The part of the user's spec that this revision was made from, as JSON: what to go back to."""
BUDGET = "plimsoll.dev/budget"
"""JSON of status.budget: what this revision was sized by; later changes of the nodes do not change it."""
INSPECTED = "plimsoll.dev/inspected"
"""JSON {uri, digest, revision, bytes}: what this revision serves, even if its source leads elsewhere by now."""
OUTPUT = "plimsoll.dev/quantized-output"
"""JSON {job, uri, digest}: the job's output that this revision serves, even if the job has changed since."""
FAILED = "plimsoll.dev/failed"
"""JSON {reason, message, at}: this revision was given up; it is not tried again until the spec changes."""
GROUPS = "plimsoll.dev/groups"
"""How many groups of pods this revision should have; where replicas are single pods it is not there."""
PROVEN = "plimsoll.dev/proven"
"""`true` once every wanted replica of this revision served."""

#: Annotations of an inspect pod.
LOOKS_AS = "plimsoll.dev/looks-as"
"""What its spec was when it was made, hashed."""
PATIENCE = "plimsoll.dev/patience"
"""Seconds that another's has to leave it before it takes its place."""

#: The key of a source's record under which a ConfigMap has the report.
REPORT = "inspection"

#: Selects everything that is ours, on the server's side.
OURS = f"{MANAGED_BY}={MANAGER}"

#: What was ours and has lost the label by which it is selected.
STRAY = f"{COMPONENT},{MANAGED_BY}!={MANAGER}"

#: Of the NetworkPolicy that all inspect pods of a namespace share.
INSPECT_POLICY = "plimsoll-inspect"

HTTP_PORT = 8000
STATUS_PORT = 8001


#: A StatefulSet's name, and with its pods' number a host name, goes into labels with a hash behind it.
_MOST_NAME = 35


def canonical(value: Any) -> str:
    """Plain data as JSON, the same for equal data with any order of keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def digest(value: Any, length: int = 10) -> str:
    """A short hash of plain data, the same for equal data."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:length]


#: On every object of ours.
OUR_LABELS: Mapping[str, str] = {MANAGED_BY: MANAGER, "app.kubernetes.io/name": "plimsoll"}


def labels(name: str, component: str, **more: str) -> Mapping[str, str]:
    """Labels of an object that belongs to deployment `name`."""
    return {**OUR_LABELS, DEPLOYMENT: name, COMPONENT: component, **more}


def job_labels(name: str) -> Mapping[str, str]:
    """Labels of what belongs to quantization job `name`."""
    return {**OUR_LABELS, **job_selector(name)}


def job_selector(name: str) -> Mapping[str, str]:
    """Selects the pods of quantization job `name`."""
    return {JOB: name, COMPONENT: "quantize"}


def selector(name: str) -> Mapping[str, str]:
    """Selects the server pods of deployment `name`, of every revision."""
    return {DEPLOYMENT: name, COMPONENT: "server"}


def group(name: str, revision: str, index: int) -> str:
    """Of a StatefulSet: NAME-REVISION-gINDEX, at most 52 characters. A longer NAME ends with a hash of itself."""
    short = name if len(name) <= _MOST_NAME else f"{name[: _MOST_NAME - 7].rstrip('-')}-{digest(name, 6)}"
    return f"{short}-{revision}-g{index}"


def group_service(name: str) -> str:
    """Of the headless Service of deployment `name`, by which pods of a group find their leader."""
    return f"{name}-group"
