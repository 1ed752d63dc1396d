{{- /* What the operator does in a namespace that it serves. Each verb is one that it uses; of secrets it may create some and read none. */ -}}
{{- define "plimsoll.rules" -}}
- apiGroups: [plimsoll.dev]
  resources: [modeldeployments, quantizationjobs]
  verbs: [get, list, watch]
- apiGroups: [plimsoll.dev]
  resources: [modeldeployments/status, quantizationjobs/status]
  verbs: [patch]
# Owner references that block deletion: clusters with OwnerReferencesPermissionEnforcement (OpenShift) ask for this.
- apiGroups: [plimsoll.dev]
  resources: [modeldeployments/finalizers, quantizationjobs/finalizers]
  verbs: [update]
# The operator deletes old revisions, the policy of inspect pods, and the records of sources that no object names any more.
# Kubernetes deletes every other object with its owner.
- apiGroups: [apps]
  resources: [replicasets]
  verbs: [get, list, watch, create, patch, delete]
# One for each group of pods; deleted where a group is too many, or has lost a pod with its node.
- apiGroups: [apps]
  resources: [statefulsets]
  verbs: [get, list, watch, create, patch, delete]
# A key for the groups of each revision, which it makes and never reads: RBAC knows no names of what is not there yet. The
# admission policy allows no other Secret.
- apiGroups: [""]
  resources: [secrets]
  verbs: [create]
# One for each quantization job; deleted where its spec was corrected before it started.
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
# Whether an output fits the claim it goes to.
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, watch, create, patch]
# Patched only to put labels back that somebody took off.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [get, list, watch]
- apiGroups: [monitoring.coreos.com]
  resources: [podmonitors, servicemonitors]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [events]
  verbs: [list, create, patch]
{{- end -}}

{{- /* What it does where it lives: taking turns. */ -}}
{{- define "plimsoll.leaseRules" -}}
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [{{ include "plimsoll.fullname" . }}-operator]
  verbs: [get, update]
{{- end -}}
