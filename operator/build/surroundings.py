"""What a namespace or a network asks of every container: limits, proxies, authorities, and who its processes are."""

from typing import Any

from plimsoll.api.pod import cpu_text, millicpus
from plimsoll.operator.build.common import USER, Object, pod_security, quantity

AUTHORITIES = "/etc/plimsoll/ca"
#: What pods reach without a proxy, in addition to what a user names: the pod itself and the cluster.
NO_PROXY = ("localhost", "127.0.0.1", "::1", ".svc", ".cluster.local")
#: CPU limit of containers that fetch or inspect, where pod.limits.cpu asks for one.
_HELPER_MILLICPUS = 1000


def security(spec: Any) -> Object:
    """Of a pod: the `restricted` standard, with the user's IDs or with none, for a cluster that assigns them."""
    wish, found = spec.pod.security_context, pod_security()
    if wish.assigned_by_cluster:
        found = {key: value for key, value in found.items() if key in ("runAsNonRoot", "seccompProfile")}
    else:
        found |= {
            "runAsUser": wish.run_as_user or USER, "runAsGroup": wish.run_as_group or USER,
            "fsGroup": wish.fs_group or USER,
        }  # fmt: skip
    if wish.supplemental_groups:
        found["supplementalGroups"] = list(wish.supplemental_groups)
    return found


def user_name(spec: Any) -> list[Object]:
    """Environment: an ID that the image does not know has no name, and libraries ask for one."""
    wish = spec.pod.security_context
    known = not wish.assigned_by_cluster and wish.run_as_user in (None, USER)
    return [] if known else [{"name": "USER", "value": "plimsoll"}]


def limited(resources: Object, spec: Any, *, helper: bool = False) -> Object:
    """`resources` with pod.limits; a request is never above its limit.

    Args:
        helper: of a container that fetches, copies or inspects, for which one processor is enough.
    """
    wish = spec.pod.limits
    requests, limits = dict(resources["requests"]), dict(resources["limits"])
    if wish.cpu is not None:
        most = min(_HELPER_MILLICPUS, millicpus(wish.cpu)) if helper else millicpus(wish.cpu)
        limits["cpu"] = cpu_text(most)
        # A default request gives way to the limit; the API server compares one that a user wrote.
        if helper or spec.pod.cpu is None:
            requests["cpu"] = cpu_text(min(most, millicpus(requests["cpu"])))
    if wish.ephemeral_storage is not None:
        limits["ephemeral-storage"] = quantity(wish.ephemeral_storage)
    return {"requests": requests, "limits": limits}


def network_environment(spec: Any) -> list[Object]:
    """Of a container that reaches hubs and buckets."""
    proxy, found = spec.pod.proxy, []
    for name, value in (("HTTP_PROXY", proxy.http), ("HTTPS_PROXY", proxy.https)):
        if value is not None:
            found.append({"name": name, "value": value})
    if found:
        beside = [one for one in proxy.no_proxy.split(",") if one]
        found.append({"name": "NO_PROXY", "value": ",".join(dict.fromkeys((*NO_PROXY, *beside)))})
    if spec.pod.ca_bundle is not None:
        found.append({"name": "PLIMSOLL_CA_BUNDLE", "value": f"{AUTHORITIES}/ca.crt"})
    return found


def authority_mounts(spec: Any) -> list[Object]:
    """Of such a container."""
    if spec.pod.ca_bundle is None:
        return []
    return [{"name": "authorities", "mountPath": AUTHORITIES, "readOnly": True}]


def authority_volumes(spec: Any) -> list[Object]:
    """Of the pod of such a container."""
    bundle = spec.pod.ca_bundle
    if bundle is None:
        return []
    items = [{"key": bundle.key, "path": "ca.crt"}]
    return [{"name": "authorities", "configMap": {"name": bundle.config_map, "items": items, "defaultMode": 0o444}}]
