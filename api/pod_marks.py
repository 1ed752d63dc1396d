"""Annotations and labels of pods that weaken a pod, or hand it what its namespace did not: refused by name.

Node agents, runtimes, networks and injectors read them after the API server has checked the pod, so Pod Security
admission does not see what they do.
"""

#: What a name does to the domains of such names. A domain covers its subdomains; some names of it may be harmless.
REFUSED_DOMAINS = {
    "chooses an AppArmor profile": ("apparmor.security.beta.kubernetes.io",),
    "chooses a seccomp profile": ("seccomp.security.alpha.kubernetes.io", "seccomp-profile.kubernetes.cri-o.io"),
    "sets kernel parameters": ("security.alpha.kubernetes.io",),
    "attaches the pod to more networks": ("cni.cncf.io", "multus-cni.io", "networking.gke.io", "vpc.amazonaws.com"),
    "chooses addresses of the network": ("cni.projectcalico.org", "ovn.org", "ovn.kubernetes.io"),
    "changes what the network enforces": ("cilium.io",),
    "gives the pod an identity in a cloud": (
        "azure.workload.identity", "aadpodidbinding", "iam.amazonaws.com", "eks.amazonaws.com", "iam.gke.io",
        "iam.cloud.google.com",
    ),
    "gives the pod an identity": ("spiffe.io",),
    "configures the container runtime": ("cri-o.io", "crio.io"),
    "injects devices": ("cdi.k8s.io",),
    "injects devices, mounts or limits": ("nri.io", "nri.containerd.io"),
    "chooses security constraints": ("openshift.io",),
    "goes past the policy for images": ("image-policy.k8s.io",),
    "configures an injected sidecar": (
        "istio.io", "linkerd.io", "consul.hashicorp.com", "kuma.io", "openservicemesh.io", "appmesh.k8s.aws",
    ),
    "injects a sidecar": ("dapr.io",),
    "injects a container that fetches secrets": ("vault.hashicorp.com", "conjur.org"),
    "injects a container": (
        "opentelemetry.io", "jaegertracing.io", "admission.datadoghq.com", "dynatrace.com", "tumblr.com",
        "telepresence.io", "getambassador.io",
    ),
    "has a node agent run checks": ("ad.datadoghq.com",),
    "injects a container that mounts buckets": ("gke-gcsfuse",),
    "is read by a policy engine": ("kyverno.io", "gatekeeper.sh", "polaris.fairwinds.com"),
    "is the kubelet's own": ("config.kubernetes.io",),
    "is Kubernetes' own": ("kubernetes.io",),
}  # fmt: skip
#: The same to beginnings of names without a domain of their own: what container runtimes read.
REFUSED_STARTS = {
    "configures the container runtime": (
        "io.kubernetes.cri", "io.kubernetes.docker", "io.kubernetes.container", "io.containerd.", "io.katacontainers.",
        "io.podman.", "dev.gvisor.", "run.oci.", "org.systemd.property.", "org.criu.", "com.github.containers.",
        "module.wasm.",
    ),
    "gives the pod an identity in a cloud": ("aadpodidbinding",),
}  # fmt: skip
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

_BY_DOMAIN = {domain: does for does, domains in REFUSED_DOMAINS.items() for domain in domains}


def weakens(name: str) -> str | None:
    """What an annotation or label of this name does to a pod that the operator does not allow, or None."""
    lowered = name.lower()
    if any(lowered == entry or (entry.endswith("/") and lowered.startswith(entry)) for entry in HARMLESS):
        return None
    start = next((does for does, starts in REFUSED_STARTS.items() if lowered.startswith(starts)), None)
    if start:
        return start
    domain, slash, _ = lowered.partition("/")
    # CRI-O also reads names whose domain stands last: `io.kubernetes.cri-o.Devices`, `cpu-quota.crio.io`.
    labels = domain.split(".")
    for first in range(len(labels)):
        does = _BY_DOMAIN.get(".".join(labels[first:]))
        if does and (slash or first < len(labels) - 1):
            return does
    return None
