"""Fields of specs by which a tenant would get past what guards everybody else."""

from collections.abc import Callable
from typing import Any

import pytest

from plimsoll.api.errors import SpecError
from plimsoll.api.manifest import parse_job_spec, parse_spec

Spec = dict[str, Any]
DEPLOYMENT: Spec = {"model": {"source": "pvc://claim/model"}, "accelerator": {"resource": "cpu", "memory": "1Gi"}}
JOB: Spec = {"model": {"source": "pvc://claim/model"}, "method": "awq", "output": "pvc://claim/out"}
PARSERS: list[tuple[Spec, Callable[[Spec], Any]]] = [(DEPLOYMENT, parse_spec), (JOB, parse_job_spec)]

#: Domains with names that are really read by somebody: kubelets, runtimes, networks, webhooks, policies.
WEAKENING = [
    *(f"container.apparmor.security.beta.kubernetes.io/{name}" for name in ("server", "fetch", "inspect", "quantize")),
    "seccomp.security.alpha.kubernetes.io/pod", "container.seccomp.security.alpha.kubernetes.io/server",
    "security.alpha.kubernetes.io/unsafe-sysctls", "scheduler.alpha.kubernetes.io/critical-pod",
    "kubernetes.io/config.mirror", "kubernetes.io/config.source", "kubernetes.io/psp",
    "k8s.v1.cni.cncf.io/networks", "k8s.v1.cni.cncf.io/networks-status", "v1.multus-cni.io/default-network",
    "cni.projectcalico.org/ipAddrs", "cni.projectcalico.org/allowedSourcePrefixes", "k8s.ovn.org/pod-networks",
    "ovn.kubernetes.io/ip_address", "networking.gke.io/interfaces", "vpc.amazonaws.com/pod-eni",
    "policy.cilium.io/proxy-visibility",
    "azure.workload.identity/use", "azure.workload.identity/inject-proxy-sidecar", "aadpodidbinding",
    "iam.amazonaws.com/role", "iam.amazonaws.com/external-id", "eks.amazonaws.com/role-arn",
    "iam.gke.io/gcp-service-account", "spiffe.io/spiffe-id",
    "io.kubernetes.cri-o.Devices", "io.kubernetes.cri-o.userns-mode", "io.kubernetes.cri-o.TrySkipVolumeSELinuxLabel",
    "seccomp-profile.kubernetes.cri-o.io/POD", "cpu-quota.crio.io", "irq-load-balancing.crio.io",
    "unified-cgroup.crio.io",
    "io.kubernetes.cri.untrusted-workload", "io.containerd.runc.v2.group", "io.katacontainers.config.hypervisor.kernel",
    "io.katacontainers.config.agent.policy", "dev.gvisor.flag.network", "dev.gvisor.spec.mount.x.source",
    "run.oci.hooks.stdout", "run.oci.keep_original_groups", "org.systemd.property.DeviceAllow",
    "io.podman.annotations.userns",
    "cdi.k8s.io/gpu", "devices.nri.io/container.server", "mounts.nri.io/container.server",
    "ulimits.nri.containerd.io/x",
    "openshift.io/scc", "openshift.io/required-scc", "images.alpha.image-policy.k8s.io/break-glass",
    "sidecar.istio.io/userVolume", "sidecar.istio.io/userVolumeMount", "sidecar.istio.io/proxyImage",
    "sidecar.istio.io/bootstrapOverride", "inject.istio.io/templates", "proxy.istio.io/config",
    "config.linkerd.io/proxy-image", "config.linkerd.io/proxy-uid", "config.linkerd.io/init-image",
    "dapr.io/sidecar-image", "dapr.io/volume-mounts-rw", "consul.hashicorp.com/envoy-extra-args",
    "vault.hashicorp.com/agent-inject", "vault.hashicorp.com/agent-run-as-user", "conjur.org/inject",
    "kuma.io/sidecar-env-vars", "appmesh.k8s.aws/sidecarEnv", "instrumentation.opentelemetry.io/inject-python",
    "sidecar.opentelemetry.io/inject", "sidecar.jaegertracing.io/inject", "admission.datadoghq.com/python-lib.version",
    "ad.datadoghq.com/server.checks", "oneagent.dynatrace.com/inject", "injector.tumblr.com/request",
    "gke-gcsfuse/volumes", "policies.kyverno.io/exclude", "polaris.fairwinds.com/exempt",
]  # fmt: skip
HARMLESS = [
    "example.com/owner", "team", "cost-center", "sidecar.istio.io/inject", "linkerd.io/inject",
    "traffic.sidecar.istio.io/excludeInboundPorts", "cluster-autoscaler.kubernetes.io/safe-to-evict",
    "kubectl.kubernetes.io/restartedAt", "app.kubernetes.io/part-of", "prometheus.io/scrape",
    "karpenter.sh/do-not-disrupt",
    "controller.kubernetes.io/pod-deletion-cost", "kueue.x-k8s.io/queue-name", "nvidia.com/gpu.product", "io.example/x",
    "notistio.io/x", "mykubernetes.io/x", "istio.io.example.com/x",
]  # fmt: skip


def words(spec: Spec, parse: Callable[[Spec], Any], pod: Spec) -> str:
    with pytest.raises(SpecError) as caught:
        parse({**spec, "pod": pod})
    return str(caught.value)


@pytest.mark.parametrize("field", ["annotations", "labels"])
@pytest.mark.parametrize(("spec", "parse"), PARSERS, ids=["deployment", "job"])
def test_names_that_weaken_a_pod_are_refused_by_name(spec: Spec, parse: Callable[[Spec], Any], field: str) -> None:
    for name in WEAKENING:
        for value in ("unconfined", ""):
            said = words(spec, parse, {field: {"team": "a", name: value}})
            assert f"spec.pod.{field}" in said
            assert name in said
    # Domains are compared without regard to case, as some readers of them do.
    assert "spec.pod" in words(spec, parse, {"annotations": {"IO.kubernetes.CRI-O.devices": "/dev/kvm"}})


@pytest.mark.parametrize("field", ["annotations", "labels"])
@pytest.mark.parametrize(("spec", "parse"), PARSERS, ids=["deployment", "job"])
def test_names_that_weaken_nothing_pass(spec: Spec, parse: Callable[[Spec], Any], field: str) -> None:
    for name in HARMLESS:
        taken = parse({**spec, "pod": {field: {name: "true"}}})
        assert getattr(taken.pod, field) == {name: "true"}
