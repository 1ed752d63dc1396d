"""What the API server itself refuses beyond types: CEL rules of the CRD, each in the words of the validator beside it.

A rule's message names the fix. Python's validators repeat every one of them, for `plimsoll up` and for objects that
were stored under an older CRD; tests/api hold the two to the same verdicts.
"""

from typing import Any

from plimsoll.api.accelerator import RESOURCE as RESOURCE_FORM
from plimsoll.api.accelerator import RESOURCE_WORDS
from plimsoll.api.source import ENDPOINT, Scheme, address_form, address_pattern

#: Where a schema keeps its rules.
RULES = "x-kubernetes-validations"
Rule = dict[str, str]

#: Addresses that mean something in a cluster.
CLUSTER_SCHEMES: tuple[Scheme, ...] = ("hf", "pvc", "s3", "oci")
STRAY = r"\.\.|//|/\.(/|$)"
STRAY_WORDS = "must not hold '..', '//' or '/.': write the plain path"
NAME = r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?"
NAME_WORDS = "must be up to 40 lower-case letters, digits and '-', a letter first and no '-' last"
ONE_MEMORY_WORDS = "is the host memory of pods on GPUs; on a CPU accelerator.memory is the pod's memory. Remove it"
TORCH_ROWS_WORDS = "goes with accelerator.resource: cpu. Remove it"
DETERMINISTIC_WORDS = "goes with accelerator.resource: cpu: kernels of GPUs do not promise it. Remove it"
EQUAL_WORDS = "contradicts serving.torchRows, with which answers depend on load: remove one of them"
HOST_MEMORY_WORDS = "goes with prefixCaching: true. Remove one of them"
OURS_WORDS = "plimsoll.dev/…, app.kubernetes.io/name and app.kubernetes.io/managed-by are written by the operator"


def rule(expression: str, message: str, field: str | None = None) -> Rule:
    """`field` is where below the rule's place the API server says that the fault is."""
    return {"rule": expression, "message": message} | ({"fieldPath": field} if field else {})


def _starts(schemes: tuple[str, ...], value: str = "self") -> str:
    return " || ".join(f"{value}.startsWith('{scheme}://')" for scheme in schemes)


SOURCE: list[Any] = [
    rule(
        "!self.startsWith('file://')",
        "file:// is a path of one machine, for `plimsoll up`; in a cluster put the files on a claim and write "
        "pvc://CLAIM/PATH",
    ),
    rule(
        _starts(("file", *CLUSTER_SCHEMES)),
        f"is not an address of a checkpoint. Write {'; '.join(address_form(scheme) for scheme in CLUSTER_SCHEMES)}",
    ),
    *(
        rule(
            f"!self.startsWith('{scheme}://') || self.matches(r'{address_pattern(scheme)}')",
            f"is not an address of the kind {scheme}://. Write {address_form(scheme)}",
        )
        for scheme in CLUSTER_SCHEMES
    ),
    rule(f"self.startsWith('file://') || !self.matches(r'://.*({STRAY})')", STRAY_WORDS),
]

ENDPOINT_ADDRESS: list[Any] = [
    rule(
        f"self.matches(r'^{ENDPOINT}$')",
        "is not the address of a service. Write https://HOST or https://HOST:PORT; names and passwords go into "
        "credentialsSecret",
    )
]


def _fetched(field: str) -> Rule:
    mounted = _starts(("pvc", "oci"), "self.source")
    return rule(
        f"!has(self.{field}) || (has(self.source) && !({mounted}))",
        f"{field} goes with hf:// and s3:// alone. Remove it",
        f".{field}",
    )


MODEL: list[Any] = [
    _fetched("endpoint"),
    _fetched("cacheClaim"),
    rule(
        "!has(self.credentialsSecret) || (has(self.source) && !self.source.startsWith('pvc://'))",
        "credentialsSecret does not go with pvc:// and quantizationJob, which need none. Remove it",
        ".credentialsSecret",
    ),
    rule(
        "!has(self.contentVersion) || (has(self.source) && !self.source.startsWith('oci://'))",
        "contentVersion does not go with oci:// and quantizationJob, whose digests name their content. Remove it",
        ".contentVersion",
    ),
]
ONE_MODEL_WORDS = "needs exactly one of source and quantizationJob: write one of them, and remove the other"
ONE_MODEL: list[Any] = [rule("has(self.source) != has(self.quantizationJob)", f"model {ONE_MODEL_WORDS}")]

TOLERATION: list[Any] = [
    rule("has(self.key) || self.operator == 'Exists'", "names no key: write one, or operator: Exists", ".key"),
    rule("!has(self.value) || self.operator == 'Equal'", "operator Exists takes no value", ".value"),
    rule(
        "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
        "tolerationSeconds goes with effect: NoExecute",
        ".tolerationSeconds",
    ),
]

SECURITY_WORDS = "assignedByCluster cannot be combined with runAsUser, runAsGroup or fsGroup: remove one of them"
SECURITY: list[Any] = [
    rule(
        "!self.assignedByCluster || !(has(self.runAsUser) || has(self.runAsGroup) || has(self.fsGroup))", SECURITY_WORDS
    )
]
SPREAD_WORDS = "minDomains needs whenUnsatisfiable: DoNotSchedule"
SPREAD: list[Any] = [rule("!has(self.minDomains) || self.whenUnsatisfiable == 'DoNotSchedule'", SPREAD_WORDS)]
ARCHITECTURE_WORDS = "contradicts pod.nodeSelector, which names another kubernetes.io/arch: write one of them"

POD: list[Any] = [
    rule(
        "!has(self.architecture) || !has(self.nodeSelector) || !('kubernetes.io/arch' in self.nodeSelector) || "
        "self.nodeSelector['kubernetes.io/arch'] == self.architecture",
        f"architecture {ARCHITECTURE_WORDS}",
        ".architecture",
    )
]

DIVIDE_WORDS = "must be a multiple of nodes: each pod of a group has as many ranks. Write auto, nodes or 2 times nodes"
SEVERAL_WORDS = "goes with nodes: 2 or more. Remove it"
APART_KEY_WORDS = "keeps groups apart by topologyKey, which is missing: write one, or remove exclusiveTopology"
_SEVERAL = "has(self.nodes) && self.nodes > 1"
_APART = "(has(self.exclusiveTopology) && self.exclusiveTopology)"
PARALLELISM: list[Any] = [
    # The API server evaluates them on the default `{}` too, whose own fields have no defaults yet.
    rule(
        "!has(self.tensor) || !has(self.nodes) || type(self.tensor) == string || self.tensor % self.nodes == 0",
        f"tensor {DIVIDE_WORDS}",
        ".tensor",
    ),
    rule(f"{_SEVERAL} || !has(self.topologyKey)", f"topologyKey {SEVERAL_WORDS}", ".topologyKey"),
    rule(f"{_SEVERAL} || !{_APART}", f"exclusiveTopology {SEVERAL_WORDS}", ".exclusiveTopology"),
    rule(
        f"!({_SEVERAL}) || !{_APART} || has(self.topologyKey)",
        f"exclusiveTopology {APART_KEY_WORDS}",
        ".exclusiveTopology",
    ),
]

KV_CACHE: list[Any] = [
    rule(
        "!has(self.hostMemory) || !has(self.prefixCaching) || self.prefixCaching",
        f"hostMemory {HOST_MEMORY_WORDS}",
        ".hostMemory",
    )
]

DRAFT_WORDS = "guesses no tokens: write speculativeTokens, such as 4, or remove it"
SERVING: list[Any] = [
    rule(
        "!has(self.draft) || (has(self.speculativeTokens) && self.speculativeTokens > 0)",
        f"draft {DRAFT_WORDS}",
        ".draft",
    )
]

NOT_OURS: list[Any] = [
    rule(
        "self.all(k, !k.startsWith('plimsoll.dev/') && k != 'app.kubernetes.io/name' "
        "&& k != 'app.kubernetes.io/managed-by')",
        OURS_WORDS,
    )
]

RESOURCE: list[Any] = [rule(f"self.matches(r'{RESOURCE_FORM}')", RESOURCE_WORDS)]

_DETERMINISTIC = "(has(self.serving) && has(self.serving.deterministic) && self.serving.deterministic)"
SPEC: list[Any] = [
    rule(
        "self.accelerator.resource != 'cpu' || !has(self.pod) || !has(self.pod.memory)",
        f"pod.memory {ONE_MEMORY_WORDS}",
        ".pod.memory",
    ),
    rule(
        "self.accelerator.resource == 'cpu' || !has(self.serving) || !has(self.serving.torchRows)",
        f"serving.torchRows {TORCH_ROWS_WORDS}",
        ".serving.torchRows",
    ),
    rule(
        f"self.accelerator.resource == 'cpu' || !{_DETERMINISTIC}",
        f"serving.deterministic {DETERMINISTIC_WORDS}",
        ".serving.deterministic",
    ),
    rule(
        f"!{_DETERMINISTIC} || !has(self.serving.torchRows)",
        f"serving.deterministic {EQUAL_WORDS}",
        ".serving.deterministic",
    ),
]

DATASET_WORDS = (
    "is not the address of texts. Write self, pvc://CLAIM/PATH, hf://datasets/ORG/NAME@REVISION or "
    "hf://datasets/ORG/NAME@REVISION/CONFIG/SPLIT; a ConfigMap goes into configMap"
)
_HUB_DATASET = r"^hf://datasets/[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[^/@\s]+)?(/[^@\s]+)?$"
DATASET: list[Any] = [
    rule("!self.startsWith('file://')", "file:// is a path of one machine, for `plimsoll up`. Write pvc://CLAIM/PATH"),
    rule(
        f"self == 'self' || self.matches(r'{address_pattern('pvc')}') || self.matches(r'{_HUB_DATASET}')", DATASET_WORDS
    ),
    rule(f"!self.matches(r'://.*({STRAY})')", DATASET_WORDS),
]
TEXTS_WORDS = "takes one of dataset and configMap: remove the other"
TEXTS: list[Any] = [rule("!(has(self.dataset) && has(self.configMap))", TEXTS_WORDS)]

OUTPUT_FORM = r"pvc://[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*(/[^/\x00-\x1f\x7f]+)+"
OUTPUT_WORDS = "is no folder of a claim. Write pvc://CLAIM/PATH, without '..' and without '/' at its end"
OUTPUT: list[Any] = [
    rule("!self.startsWith('file://')", "file:// is a path of one machine, for `plimsoll up`. Write pvc://CLAIM/PATH"),
    rule(f"self.matches(r'^{OUTPUT_FORM}$')", OUTPUT_WORDS),
    rule(f"!self.matches(r'://.*({STRAY})')", OUTPUT_WORDS),
]

BITS_WORDS = "must be 4, or 8 with method int8. Leave it out"
GROUP_WORDS = "goes with 4 bits: method int8 has one scale a row. Remove it"
SEARCH_WORDS = "goes with method awq, the only one that searches. Remove it"
FORMAT_WORDS = "awq holds 4 bits only. Write compressed-tensors with method int8, or leave it out"
APART_WORDS = "must be apart from model.source: neither may lie in the other. Write another PATH"
_ON_GPUS = "(has(self.accelerator) && has(self.accelerator.resource) && self.accelerator.resource != 'cpu')"
QUANTIZATION: list[Any] = [
    rule(
        "!has(self.weights) || !has(self.weights.bits) || self.weights.bits == (self.method == 'int8' ? 8 : 4)",
        f"weights.bits {BITS_WORDS}",
        ".weights.bits",
    ),
    rule(
        "self.method != 'int8' || !has(self.weights) || !has(self.weights.groupSize)",
        f"weights.groupSize {GROUP_WORDS}",
        ".weights.groupSize",
    ),
    *(
        rule(
            f"self.method == 'awq' || !has(self.weights) || !has(self.weights.{field})",
            f"weights.{field} {SEARCH_WORDS}",
            f".weights.{field}",
        )
        for field in ("searchScale", "clip", "compensate")
    ),
    rule(
        "self.method == 'awq' || !has(self.calibration) || !has(self.calibration.samples)",
        f"calibration.samples {SEARCH_WORDS}",
        ".calibration.samples",
    ),
    rule(
        "self.method == 'awq' || !has(self.parallelism) || !has(self.parallelism.workers) "
        "|| self.parallelism.workers == 1",
        f"parallelism.workers {SEARCH_WORDS}",
        ".parallelism.workers",
    ),
    rule(
        f"self.method == 'awq' || !{_ON_GPUS}",
        f"accelerator.resource {SEARCH_WORDS}",
        ".accelerator.resource",
    ),
    rule(f"{_ON_GPUS} || !has(self.pod) || !has(self.pod.memory)", f"pod.memory {ONE_MEMORY_WORDS}", ".pod.memory"),
    rule("self.method != 'int8' || !has(self.format) || self.format != 'awq'", f"format {FORMAT_WORDS}", ".format"),
    rule(
        "!(self.output + '/').startsWith(self.model.source + (self.model.source.endsWith('/') ? '' : '/')) "
        "&& !self.model.source.startsWith(self.output + '/') && self.model.source != self.output",
        f"output {APART_WORDS}",
        ".output",
    ),
]
STARTED = rule(
    "!has(oldSelf.status) || !has(oldSelf.status.startTime) || self.spec == oldSelf.spec",
    "spec is immutable once the job has started: delete the QuantizationJob and apply the new spec. Write another "
    "output path if the checkpoint, the recipe or a text changes",
)

ROOT: list[Any] = [rule(f"self.metadata.name.matches('^{NAME}$')", f"metadata.name {NAME_WORDS}")]
