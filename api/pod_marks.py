"""Annotations and labels of pods that weaken a pod, or hand it what its namespace did not: refused by name.

Node agents, runtimes, networks and injectors read them after the API server has checked the pod, so Pod Security
admission does not see what they do.
"""

#: Domain of a name to what a name of it does. A domain covers its subdomains; some names of it may be harmless.
REFUSED_DOMAINS = {
    "apparmor.security.beta.kubernetes.io": "chooses an AppArmor profile",
    "seccomp.security.alpha.kubernetes.io": "chooses a seccomp profile",
    "security.alpha.kubernetes.io": "sets kernel parameters",
    "seccomp-profile.kubernetes.cri-o.io": "chooses a seccomp profile",
    "cni.cncf.io": "attaches the pod to more networks",
    "multus-cni.io": "attaches the pod to more networks",
    "cni.projectcalico.org": "chooses addresses of the network",
    "ovn.org": "chooses addresses of the network",
    "ovn.kubernetes.io": "chooses addresses of the network",
    "networking.gke.io": "attaches the pod to more networks",
    "vpc.amazonaws.com": "attaches the pod to more networks",
    "cilium.io": "changes what the network enforces",
    "azure.workload.identity": "gives the pod an identity in a cloud",
    "aadpodidbinding": "gives the pod an identity in a cloud",
    "iam.amazonaws.com": "gives the pod an identity in a cloud",
    "eks.amazonaws.com": "gives the pod an identity in a cloud",
    "iam.gke.io": "gives the pod an identity in a cloud",
    "iam.cloud.google.com": "gives the pod an identity in a cloud",
    "spiffe.io": "gives the pod an identity",
    "cri-o.io": "configures the container runtime",
    "crio.io": "configures the container runtime",
    "cdi.k8s.io": "injects devices",
    "nri.io": "injects devices, mounts or limits",
    "nri.containerd.io": "injects devices, mounts or limits",
    "openshift.io": "chooses security constraints",
    "image-policy.k8s.io": "goes past the policy for images",
    "istio.io": "configures an injected sidecar",
    "linkerd.io": "configures an injected sidecar",
    "dapr.io": "injects a sidecar",
    "consul.hashicorp.com": "configures an injected sidecar",
    "vault.hashicorp.com": "injects a container that fetches secrets",
    "conjur.org": "injects a container that fetches secrets",
    "kuma.io": "configures an injected sidecar",
    "openservicemesh.io": "configures an injected sidecar",
    "appmesh.k8s.aws": "configures an injected sidecar",
    "opentelemetry.io": "injects a container",
    "jaegertracing.io": "injects a container",
    "admission.datadoghq.com": "injects a container",
    "ad.datadoghq.com": "has a node agent run checks",
    "dynatrace.com": "injects a container",
    "tumblr.com": "injects a container",
    "telepresence.io": "injects a container",
    "getambassador.io": "injects a container",
    "gke-gcsfuse": "injects a container that mounts buckets",
    "kyverno.io": "is read by a policy engine",
    "gatekeeper.sh": "is read by a policy engine",
    "polaris.fairwinds.com": "is read by a policy engine",
    "config.kubernetes.io": "is the kubelet's own",
    "kubernetes.io": "is Kubernetes' own",
}
#: Beginnings of names without a domain of their own: what container runtimes read.
REFUSED_STARTS = {
    "io.kubernetes.cri": "configures the container runtime",
    "io.kubernetes.docker": "configures the container runtime",
    "io.kubernetes.container": "configures the container runtime",
    "io.containerd.": "configures the container runtime",
    "io.katacontainers.": "configures the container runtime",
    "io.podman.": "configures the container runtime",
    "dev.gvisor.": "configures the container runtime",
    "run.oci.": "configures the container runtime",
    "org.systemd.property.": "configures the container runtime",
    "org.criu.": "configures the container runtime",
    "com.github.containers.": "configures the container runtime",
    "module.wasm.": "configures the container runtime",
    "aadpodidbinding": "gives the pod an identity in a cloud",
}
#: Names of refused domains that weaken nothing, in small letters: whole, or up to a slash with all that follows it.
HARMLESS = (
    "app.kubernetes.io/", "helm.sh/", "batch.kubernetes.io/", "cluster-autoscaler.kubernetes.io/",
    "controller.kubernetes.io/pod-deletion-cost", "kubectl.kubernetes.io/", "descheduler.alpha.kubernetes.io/",
    "kubernetes.io/description", "kubernetes.io/change-cause", "kubernetes.io/egress-bandwidth",
    "kubernetes.io/ingress-bandwidth", "topology.kubernetes.io/", "kueue.x-k8s.io/",
    # A mesh that asks for mutual TLS has to leave the status port to the operator.
    "traffic.sidecar.istio.io/excludeinboundports", "traffic.sidecar.istio.io/excludeoutboundports",
    "config.linkerd.io/skip-inbound-ports", "config.linkerd.io/skip-outbound-ports",
    "sidecar.istio.io/inject", "istio.io/rev", "istio.io/dataplane-mode", "service.istio.io/canonical-name",
    "service.istio.io/canonical-revision", "linkerd.io/inject", "kuma.io/sidecar-injection", "kuma.io/mesh",
    "openservicemesh.io/sidecar-injection", "consul.hashicorp.com/connect-inject",
)  # fmt: skip


def weakens(name: str) -> str | None:
    """What an annotation or label of this name does to a pod that the operator does not allow, or None."""
    lowered = name.lower()
    if any(lowered == entry or (entry.endswith("/") and lowered.startswith(entry)) for entry in HARMLESS):
        return None
    start = next((does for begin, does in REFUSED_STARTS.items() if lowered.startswith(begin)), None)
    if start:
        return start
    domain, slash, _ = lowered.partition("/")
    # CRI-O also reads names whose domain stands last: `io.kubernetes.cri-o.Devices`, `cpu-quota.crio.io`.
    labels = domain.split(".")
    for first in range(len(labels)):
        does = REFUSED_DOMAINS.get(".".join(labels[first:]))
        if does and (slash or first < len(labels) - 1):
            return does
    return None
