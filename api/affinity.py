"""`pod.affinity`, as Kubernetes has it: checked here field by field, and kept out of the CRD.

The CRD takes the field whole (x-kubernetes-preserve-unknown-fields): its schema would be longer than all other fields
of a pod together. The operator names the field at fault in the Accepted condition.
"""

from typing import Annotated, Literal

from pydantic import Field, WithJsonSchema

from plimsoll.api.fields import Part

_Key = Annotated[str, Field(min_length=1, max_length=316)]
_Weight = Annotated[int, Field(ge=1, le=100)]
_Namespaces = Annotated[list[str], Field(max_length=64)]


class NodeExpression(Part):
    """One condition on a node's label or field: `key operator values`."""

    key: _Key
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    values: list[str] | None = None


class NodeTerm(Part):
    """Conditions on one node; all must hold."""

    match_expressions: list[NodeExpression] | None = None
    match_fields: list[NodeExpression] | None = None


class NodeTerms(Part):
    """Terms of required node affinity; one must hold."""

    node_selector_terms: Annotated[list[NodeTerm], Field(min_length=1)]


class NodePreference(Part):
    """A node term and its weight, 1 to 100."""

    weight: _Weight
    preference: NodeTerm


class NodeAffinity(Part):
    """Required and preferred terms of node affinity."""

    required: NodeTerms | None = Field(default=None, alias="requiredDuringSchedulingIgnoredDuringExecution")
    preferred: list[NodePreference] | None = Field(
        default=None, alias="preferredDuringSchedulingIgnoredDuringExecution"
    )


class LabelExpression(Part):
    """One condition on a label: `key operator values`."""

    key: _Key
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: list[str] | None = None


class LabelSelector(Part):
    """Labels and conditions on labels; all must hold."""

    match_labels: dict[str, str] | None = None
    match_expressions: list[LabelExpression] | None = None


class PodTerm(Part):
    """Other pods, and the topology key that says how near they are."""

    topology_key: _Key
    label_selector: LabelSelector | None = None
    namespaces: _Namespaces | None = None
    namespace_selector: LabelSelector | None = None
    match_label_keys: list[str] | None = None
    mismatch_label_keys: list[str] | None = None


class PodPreference(Part):
    """A pod term and its weight, 1 to 100."""

    weight: _Weight
    pod_affinity_term: PodTerm


class PodAffinity(Part):
    """Required and preferred terms of affinity, or anti-affinity, to other pods."""

    required: list[PodTerm] | None = Field(default=None, alias="requiredDuringSchedulingIgnoredDuringExecution")
    preferred: list[PodPreference] | None = Field(default=None, alias="preferredDuringSchedulingIgnoredDuringExecution")


class Affinity(Part):
    """`pod.affinity` of a manifest, with the fields of Kubernetes."""

    node_affinity: NodeAffinity | None = None
    pod_affinity: PodAffinity | None = None
    pod_anti_affinity: PodAffinity | None = None


AffinityField = Annotated[
    Affinity, WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True})
]  # fmt: skip
