{{- define "plimsoll.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | replace "." "-" | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | replace "." "-" | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* What selects the operator's pods. Model pods carry app.kubernetes.io/name: plimsoll, so this is another name. */ -}}
{{- define "plimsoll.selector" -}}
app.kubernetes.io/name: plimsoll-operator
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- /* Of the chart's own objects. None of them is handed on to what the operator makes: an upgrade of the chart changes
no model pod. */ -}}
{{- define "plimsoll.labels" -}}
{{ include "plimsoll.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "plimsoll.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (printf "%s-operator" (include "plimsoll.fullname" .)) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name: name the account that the operator runs as; it is required while serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- /* A shell pattern as a regular expression: * ? [abc] [!abc]. Its alphabet is that of values.schema.json. */ -}}
{{- define "plimsoll.globRegex" -}}
{{- $quoted := regexQuoteMeta . | replace "\\*" ".*" | replace "\\?" "." -}}
{{- regexReplaceAll "\\\\\\[([-a-z0-9]+)\\\\\\]" (regexReplaceAll "\\\\\\[!([-a-z0-9]+)\\\\\\]" $quoted "[^${1}]") "[${1}]" -}}
{{- end -}}

{{- /* (dict "image" VALUES "default" TAG): a digest says exactly what runs, so it wins. */ -}}
{{- define "plimsoll.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ default .default .image.tag }}
{{- end -}}
{{- end -}}

{{- /* The operator's configuration file. */ -}}
{{- define "plimsoll.settings" -}}
{{- $settings := deepCopy .Values.settings -}}
{{- $_ := set $settings "workers" (int .Values.settings.workers) -}}
{{- $_ := set $settings "healthPort" (int .Values.settings.healthPort) -}}
{{- $_ := set $settings "operatorNamespace" .Release.Namespace -}}
{{- $_ := set $settings "leaseName" (printf "%s-operator" (include "plimsoll.fullname" .)) -}}
{{- $_ := set $settings "runtimeImage" (include "plimsoll.image" (dict "image" .Values.runtime.image "default" .Chart.AppVersion)) -}}
{{- if .Values.runtime.cudaImage.repository -}}
{{- $_ := set $settings "cudaRuntimeImage" (include "plimsoll.image" (dict "image" .Values.runtime.cudaImage "default" (printf "%s-cuda" .Chart.AppVersion))) -}}
{{- end -}}
{{- if and (not .Values.runtime.cudaImage.repository) (or .Values.runtime.cudaImage.tag .Values.runtime.cudaImage.digest) -}}
{{- fail "runtime.cudaImage.repository: is empty while a tag or a digest is given: name the repository, or take them out" -}}
{{- end -}}
{{- $_ := set $settings "monitorLabels" .Values.metrics.labels -}}
{{- $_ := set $settings "imagePullSecrets" .Values.runtime.imagePullSecrets -}}
{{- toYaml $settings -}}
{{- end -}}
