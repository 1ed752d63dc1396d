"""The pod that serves one revision: its template, the same for every replica."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from plimsoll.api.budget import SERVER_BYTES, Budget
from plimsoll.api.deployment import API_VERSION, KIND, ModelDeploymentSpec
from plimsoll.api.device import HOST_BYTES_PER_DEVICE
from plimsoll.api.inspection import Inspection
from plimsoll.api.pod import Spread
from plimsoll.api.quantization_job import QuantizationJobSpec
from plimsoll.api.source import Source, parse_source
from plimsoll.operator import names
from plimsoll.operator.build.common import Object, container_security, plain, quantity
from plimsoll.operator.build.placing import Placing, node_affinity, with_affinity
from plimsoll.operator.build.revision import essentials, processors
from plimsoll.operator.build.source import (
    IMAGE_FOLDER,
    cache_folder,
    credentials,
    downloaded_uri,
    fetched,
    image_reference,
    mounted_uri,
    of_draft,
    resolved,
)
from plimsoll.operator.build.surroundings import (
    authority_mounts,
    authority_volumes,
    limited,
    network_environment,
    security,
    user_name,
)
from plimsoll.operator.settings import Settings
from plimsoll.operator.snapshot import Deployment

Spec = ModelDeploymentSpec | QuantizationJobSpec

MIB, GIB = 1 << 20, 1 << 30
MODELS = "/models"
#: What the server compares with the manifest of a quantized checkpoint before it loads that.
CHECKPOINT_DIGEST = "PLIMSOLL_CHECKPOINT_DIGEST"
#: What the pod compares with the files of a claim before and after it loads them; a hub's and a bucket's are compared
#: by the container that fetches, and an image has its digest.
CHECKPOINT_CONTENTS = "PLIMSOLL_CHECKPOINT_CONTENTS"
KEYS = "/etc/plimsoll/keys"
#: What the kubelet waits for after the drain before it kills: the requests cut off at the timeout are still answered,
#: and the engine lets go of its device.
GRACE_SECONDS = 30
#: The same where a probe has found that the server hangs.
HUNG_GRACE_SECONDS = 10
#: /dev/shm: semaphores alone on one device, and on CPUs, whose ranks share memory without a name, which their budget
#: counts; NCCL's buffers between several GPUs.
SHARED_BYTES, SHARED_BYTES_PER_RANK = 64 * MIB, 512 * MIB
#: Of `/tmp`: compiled GPU kernels, sockets.
SCRATCH_BYTES = GIB


@dataclass(frozen=True)
class Models:
    """How the checkpoint gets in: the volume, where the server sees it, and who fills it first."""

    volume: Object
    uri: str
    mount_path: str = MODELS
    name: str = "models"
    """Of the volume."""
    init: list[Object] = field(default_factory=list)
    pull_secret: str | None = None


def pod_template(
    deployment: Deployment, spec: ModelDeploymentSpec, inspection: Inspection, budget: Budget, settings: Settings,
    *, revision: str, image_volumes: bool, digest: str | None = None, placing: Placing | None = None,
    draft: Inspection | None = None,
) -> Object:  # fmt: skip
    """Everything of it follows from the arguments; nothing names the operator's version.

    `digest` is of the manifest that must lie beside the weights: pods load nothing else. `draft` is what was found of
    `spec.serving.draft`.
    """
    pod = spec.pod
    models = [models_of(spec, inspection, settings, image_volumes)]
    if draft is not None:
        models.append(models_of(of_draft(spec), draft, settings, image_volumes, "draft"))
    # A pod that serves alone leads: the Service chooses leaders where a deployment has groups.
    ours = {**names.labels(deployment.name, "server"), names.REVISION: revision, names.INDEX: names.LEADS}
    annotations = {
        "kubectl.kubernetes.io/default-container": "server",
        # Nothing in these outlives the pod, so they need not keep an autoscaler from emptying the node.
        "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes": ",".join(
            ("tmp", "shm", *(one.name for one in models))
        ),
    }
    template: Object = {
        "metadata": {"labels": {**plain(pod.labels), **ours}, "annotations": {**annotations, **plain(pod.annotations)}},
        "spec": {
            "terminationGracePeriodSeconds": int(-(-spec.rollout.drain_timeout // 1)) + GRACE_SECONDS,
            "topologySpreadConstraints": _spread(deployment.name, revision, pod.topology_spread_constraints),
            "containers": [_server(deployment, spec, models, budget, settings)],
            "volumes": _volumes(spec, models, budget),
        },
    }
    template["spec"]["containers"][0]["env"] += inspected_contents(spec, inspection)
    if digest is not None:
        template["spec"]["containers"][0]["env"].append({"name": CHECKPOINT_DIGEST, "value": digest})
    if init := [container for one in models for container in one.init]:
        template["spec"]["initContainers"] = init
    template["spec"] |= placement(spec, settings, next((one.pull_secret for one in models if one.pull_secret), None))
    if placing is not None:
        template["spec"]["affinity"] = with_affinity(template["spec"].get("affinity") or {}, node_affinity(placing))
    return template


def placement(spec: Spec, settings: Settings, pull_secret: str | None) -> Object:
    """What all pods of ours share: what they may do, who they are to the registry and the cloud, and their nodes."""
    pulls = dict.fromkeys((*settings.image_pull_secrets, *spec.pod.image_pull_secrets))
    if pull_secret:
        pulls[pull_secret] = None
    found: Object = {
        "automountServiceAccountToken": False, "enableServiceLinks": False, "securityContext": security(spec),
    }  # fmt: skip
    if pulls:
        found["imagePullSecrets"] = [{"name": name} for name in pulls]
    if spec.pod.tolerations:
        found["tolerations"] = plain(spec.pod.tolerations)
    if spec.pod.service_account_name:
        found["serviceAccountName"] = spec.pod.service_account_name
    if spec.pod.node_selector:
        found["nodeSelector"] = plain(spec.pod.node_selector)
    if spec.pod.priority_class_name:
        found["priorityClassName"] = spec.pod.priority_class_name
    if spec.pod.runtime_class_name:
        found["runtimeClassName"] = spec.pod.runtime_class_name
    if spec.pod.affinity is not None:
        found["affinity"] = plain(spec.pod.affinity)
    return found


def inspected_contents(spec: Spec, inspection: Inspection) -> list[Object]:
    """Environment of the container that loads a claim's files; empty where an earlier version inspected them."""
    if parse_source(spec.model.source).scheme != "pvc" or not inspection.contents:
        return []
    return [{"name": CHECKPOINT_CONTENTS, "value": inspection.contents}]


def models_of(
    spec: Spec, inspection: Inspection, settings: Settings, image_volumes: bool, name: str = "models"
) -> Models:
    """Volume and address of the checkpoint, and what fetches it.

    Args:
        name: of the volume, which is mounted at a folder of that name.
    """
    model, source, root = spec.model, parse_source(spec.model.source), f"/{name}"
    if source.scheme == "pvc":
        claim = {"claimName": source.name, "readOnly": True}
        volume = {"name": name, "persistentVolumeClaim": claim}
        return Models(volume, mounted_uri(root, source, inspection), root, name)
    if source.scheme == "oci":
        return _image(spec, source, inspection, image_volumes, name)
    folder, volume = root, {"name": name, "emptyDir": {}}
    if model.cache_claim:
        folder = f"{root}/{cache_folder(model, inspection)}"
        volume = {"name": name, "persistentVolumeClaim": {"claimName": model.cache_claim}}
    fetch = reader(fetcher(name), spec, settings)
    # A source may begin with anything but a dash: every form of it begins with its scheme.
    fetch["args"] = [
        "fetch", resolved(model, inspection), "--into", folder,
        # A bucket's folder may have changed since: other weights than the budget was made for are refused.
        "--revision", inspection.revision, "--status-port", str(names.STATUS_PORT), "--report", "/dev/termination-log",
    ]  # fmt: skip
    fetch["volumeMounts"].append({"name": name, "mountPath": root})
    if not model.cache_claim:
        _reserve_disk(fetch, inspection)
    return Models(volume, downloaded_uri(folder, source, inspection), root, name, [fetch])


def fetcher(volume: str) -> str:
    """The name of the container that fills a volume."""
    return "fetch" if volume == "models" else f"fetch-{volume}"


def _image(spec: Spec, source: Source, inspection: Inspection, image_volumes: bool, name: str) -> Models:
    """An image as a volume, or its files copied by itself, which needs `cp` in it. Both look the same to the server."""
    root, secret = f"/{name}", spec.model.credentials_secret
    image, uri = image_reference(source), mounted_uri(root, source, inspection)
    if image_volumes:
        return Models(image_volume(name, image), uri, root, name, pull_secret=secret)
    copy = copier(fetcher(name), source, name, spec)
    _reserve_disk(copy, inspection)
    volume = {"name": name, "emptyDir": {}}
    return Models(volume, uri, f"{root}/{copied_folder(source)}", name, [copy], pull_secret=secret)


def image_volume(name: str, image: str) -> Object:
    """A volume of an OCI image's files."""
    return {"name": name, "image": {"reference": image, "pullPolicy": "IfNotPresent"}}


def copied_folder(source: Source) -> str:
    """What is copied of an image: a file's folder, since a volume is mounted as a folder."""
    path = source.path.rpartition("/")[0] if source.path.endswith(".gguf") else source.path
    return path or IMAGE_FOLDER


def copier(name: str, source: Source, volume: str, spec: Spec) -> Object:
    """Runs in the model's image, so that needs `cp` and files that anybody may read."""
    return {
        "name": name,
        "image": image_reference(source),
        "imagePullPolicy": "IfNotPresent",
        "command": ["cp", "-r", f"/{copied_folder(source)}/.", "/copy/"],
        "securityContext": container_security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "resources": limited(
            {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}}, spec, helper=True
        ),
        "volumeMounts": [{"name": volume, "mountPath": "/copy"}],
    }


def reader(name: str, spec: Spec, settings: Settings) -> Object:
    """A container of the runtime image that reads a source; its arguments and model mounts are the caller's."""
    return {
        "name": name,
        "image": spec.pod.image or settings.runtime_image,
        "imagePullPolicy": spec.pod.image_pull_policy,
        "env": [
            *environment(),
            *user_name(spec),
            *network_environment(spec),
            # A source must not lead to the node's or the cloud's own services, by redirect or by name.
            {"name": "PLIMSOLL_FORBID_LOCAL", "value": "1"},
            *credentials(spec.model),
        ],
        "securityContext": container_security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "resources": limited(
            {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}}, spec, helper=True
        ),
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, *authority_mounts(spec)],
    }


def environment() -> list[Object]:
    """Environment variables of every container."""
    return [{"name": "HOME", "value": "/tmp"}, {"name": "HF_HUB_DISABLE_TELEMETRY", "value": "1"}]


def _reserve_disk(container: Object, inspection: Inspection) -> None:
    """The node's disk is asked for beforehand: a full one evicts its pods long after they were placed."""
    container["resources"]["requests"]["ephemeral-storage"] = quantity(-(-inspection.bytes // MIB) * MIB)


def _server(
    deployment: Deployment, spec: ModelDeploymentSpec, models: Sequence[Models], budget: Budget, settings: Settings
) -> Object:
    gpu = spec.accelerator.resource != "cpu"
    image = (settings.cuda_runtime_image or settings.runtime_image) if gpu else settings.runtime_image
    mounts = [
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "shm", "mountPath": "/dev/shm"},
        *({"name": one.name, "mountPath": one.mount_path, "readOnly": True} for one in models),
    ]
    if spec.serving.api_keys_secret:
        mounts.append({"name": "keys", "mountPath": KEYS, "readOnly": True})
    manifest = names.canonical(_manifest(deployment, spec, models, budget))
    return {
        "name": "server",
        "image": spec.pod.image or image,
        "imagePullPolicy": spec.pod.image_pull_policy,
        "args": ["pod"],
        "env": [
            {"name": "PLIMSOLL_DEPLOYMENT", "value": manifest},
            *environment(),
            *user_name(spec),
            # Everything is in the pod by now; a tokenizer's file that is not must not be looked for elsewhere.
            {"name": "HF_HUB_OFFLINE", "value": "1"},
        ],
        "ports": [
            {"name": "http", "containerPort": names.HTTP_PORT, "protocol": "TCP"},
            {"name": "status", "containerPort": names.STATUS_PORT, "protocol": "TCP"},
        ],
        "resources": resources(deployment, spec, budget),
        "securityContext": container_security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "lifecycle": {"preStop": {"httpGet": {"path": "/drain", "port": "status", "scheme": "HTTP"}}},
        **probes(),
        "volumeMounts": mounts,
    }


def _manifest(
    deployment: Deployment, spec: ModelDeploymentSpec, models: Sequence[Models], budget: Budget
) -> Mapping[str, Any]:
    """What the server reads: the user's whole wish with what was decided, checkpoints as paths, no secret's name.

    Only how many pods there are and what pods are made of is left out: neither may change a server.
    """
    wish: Object = {name: part for name, part in essentials(spec).items() if name not in ("replicas", "pod")}
    # The rest of `model` says how the checkpoint is reached, and it is here.
    model = {"source": models[0].uri}
    if spec.model.served_name:
        model["servedName"] = spec.model.served_name
    serving = {**wish.get("serving", {})}
    if len(models) > 1:
        serving["draft"] = {"source": models[1].uri}
    if serving.pop("apiKeysSecret", None):
        serving["apiKeysFile"] = f"{KEYS}/keys"
    kept = wish | {"model": model, "precision": budget.precision}
    # Where pods of a group run is the scheduler's; an engine of one pod knows no other.
    kept["parallelism"] = {"tensor": budget.tensor, **({"nodes": budget.nodes} if budget.nodes > 1 else {})}
    kept["rollout"] = {"drainTimeout": spec.rollout.drain_timeout}
    if serving:
        kept["serving"] = serving
    else:
        kept.pop("serving", None)
    if spec.pod.cpu is not None:
        kept["pod"] = {"cpu": spec.pod.cpu}
    meta = {"name": deployment.name, "namespace": deployment.namespace}
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": meta, "spec": kept}


def resources(deployment: Deployment, spec: ModelDeploymentSpec, budget: Budget) -> Object:
    """The budget's own numbers. On a CPU the lines of all ranks and the endpoint beside them are the limit; on GPUs
    the devices are, and host memory is beside.

    Processors are asked for as written; the limit is the engine's threads, so `400m` is a share of one and not a brake.
    """
    requests: Object = {"cpu": str(processors(deployment.spec) or 1)}
    limits: Object = {} if spec.pod.cpu is None else {"cpu": str(spec.pod.cpu)}
    if spec.accelerator.resource == "cpu":
        both = {"memory": quantity(budget.pod_bytes + SERVER_BYTES)}
    else:
        own = spec.pod.memory or HOST_BYTES_PER_DEVICE * budget.pod_ranks
        memory = quantity(own + budget.pod_host_bytes)
        both = {"memory": memory, spec.accelerator.resource: str(budget.pod_ranks)}
    return limited({"requests": requests | both, "limits": limits | both}, spec)


def probes() -> Object:
    """/live answers 200 while loading moves, so a probe that fails means a process that is not there or has stopped."""
    live = {
        "httpGet": {"path": "/live", "port": "status", "scheme": "HTTP"}, "timeoutSeconds": 5,
        # What these probes end has said nothing for a minute and will not drain: the kubelet must not wait for that.
        "terminationGracePeriodSeconds": HUNG_GRACE_SECONDS,
    }  # fmt: skip
    return {
        # Until the status port first answers: imports alone take half a minute on a busy node. Five minutes of silence
        # are a process that will never speak; loading itself, however long, is past this probe and counts as alive.
        "startupProbe": {**live, "periodSeconds": 2, "failureThreshold": 150},
        # A minute of silence, where the loop turns many times a second: longer than a node's worst stall, and short
        # beside what a dead server costs.
        "livenessProbe": {**live, "periodSeconds": 10, "failureThreshold": 6},
        # A 503 is certain knowledge (the engine died or hangs, or the pod leaves): the first one takes the pod out of
        # its Service. A late answer is not: an overloaded node is slow, and taking its pod away only moves the load. So
        # one probe waits as long as a node may be slow.
        "readinessProbe": {
            "httpGet": {"path": "/ready", "port": "status", "scheme": "HTTP"},
            "timeoutSeconds": 30, "periodSeconds": 1, "failureThreshold": 1,
        },
    }  # fmt: skip


def _spread(name: str, revision: str, wish: list[Spread]) -> list[Object]:
    """Over nodes where that can be had, unless something else is wished; a node less is no reason not to serve."""
    labels = {"labelSelector": {"matchLabels": {**names.selector(name), names.REVISION: revision}}}
    default = Spread(topologyKey="kubernetes.io/hostname")  # type: ignore[call-arg]
    return [{**plain(one), **labels} for one in wish or [default]]


def _volumes(spec: ModelDeploymentSpec, models: Sequence[Models], budget: Budget) -> list[Object]:
    alone = budget.pod_ranks == 1 or spec.accelerator.resource == "cpu"
    shared = SHARED_BYTES if alone else SHARED_BYTES_PER_RANK * budget.pod_ranks
    found = [
        *(one.volume for one in models),
        scratch(),
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": quantity(shared)}},
    ]
    if spec.serving.api_keys_secret:
        # Not by subPath: a mounted folder follows the Secret, and keys change without a restart.
        secret = {"secretName": spec.serving.api_keys_secret, "items": [{"key": "keys", "path": "keys"}]}
        found.append({"name": "keys", "secret": {**secret, "defaultMode": 0o440, "optional": False}})
    sources = [spec.model.source, *([spec.serving.draft.source] if spec.serving.draft else [])]
    return [*found, *(authority_volumes(spec) if any(fetched(parse_source(one)) for one in sources) else [])]


def scratch() -> Object:
    """The volume for temporary files."""
    return {"name": "tmp", "emptyDir": {"sizeLimit": quantity(SCRATCH_BYTES)}}
