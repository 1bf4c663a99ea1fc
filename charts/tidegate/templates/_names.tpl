{{- define "tidegate.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- define "tidegate.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else if contains (include "tidegate.name" .) .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "tidegate.name" .) | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- /* Name of what belongs to no namespace: two releases may have the same name in different ones. */}}
{{- define "tidegate.clustername" -}}
{{- printf "%s:%s" .Release.Namespace (include "tidegate.fullname" .) }}
{{- end }}

{{- define "tidegate.selector" -}}
app.kubernetes.io/name: {{ include "tidegate.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "tidegate.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "tidegate.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: tidegate
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "tidegate.account" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "tidegate.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- required "serviceAccount.name is needed when serviceAccount.create is false" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "tidegate.image" -}}
{{- with .Values.image }}
{{- if .digest }}
{{- printf "%s@%s" .repository .digest }}
{{- else }}
{{- printf "%s:%s" .repository (default $.Chart.AppVersion .tag) }}
{{- end }}
{{- end }}
{{- end }}

{{- /* Where the program listens. In the node's network the ports are the node's. */}}
{{- define "tidegate.http" -}}
{{- if .Values.hostNetwork.enabled }}{{ .Values.hostPorts.http }}{{ else }}{{ .Values.containerPorts.http }}{{ end }}
{{- end }}
{{- define "tidegate.https" -}}
{{- if .Values.hostNetwork.enabled }}{{ .Values.hostPorts.https }}{{ else }}{{ .Values.containerPorts.https }}{{ end }}
{{- end }}

{{- /* What it listens on for these ports: each of them at each chosen address, if there are any. */}}
{{- define "tidegate.listen" -}}
{{- $all := list }}
{{- range $port := .ports }}
{{- if $.root.Values.listeners.addresses }}
{{- range $.root.Values.listeners.addresses }}
{{- $all = append $all (printf "%s:%v" (ternary (printf "[%s]" .) . (contains ":" .)) $port) }}
{{- end }}
{{- else }}
{{- $all = append $all (toString $port) }}
{{- end }}
{{- end }}
{{- join "," $all }}
{{- end }}

{{- /* The ports of agents, each number of each protocol. */}}
{{- define "tidegate.tunnelPorts" -}}
{{- range .Values.tunnel.ports }}
{{- $parts := splitList "/" (toString .) }}
{{- $ends := splitList "-" (first $parts) }}
{{- $protocols := list "TCP" "UDP" }}
{{- if gt (len $parts) 1 }}{{ $protocols = list (upper (last $parts)) }}{{ end }}
{{- range $number := untilStep (int (first $ends)) (int (add1 (int (last $ends)))) 1 }}
{{- range $protocols }}
- {number: {{ $number }}, protocol: {{ . }}}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- /* Where clients reach it; redirects lead there. */}}
{{- define "tidegate.public" -}}
{{- if or .Values.hostNetwork.enabled .Values.hostPorts.enabled }}{{ .Values.hostPorts.https }}{{ else }}{{ .Values.service.ports.https }}{{ end }}
{{- end }}

{{- /* Whether two pods cannot be on one node at the same time: Kubernetes gives a declared port of a node to one pod. In
       the node's own network none is declared, and the program hands its sockets on. */}}
{{- define "tidegate.onePerNode" -}}
{{- if .Values.hostPorts.enabled }}true{{ end }}
{{- end }}

{{- /* Whether it must be root, to listen or to relay datagrams under their own addresses: a process of another user gets no capability from Kubernetes. */}}
{{- define "tidegate.root" -}}
{{- $privileged := or (lt (int .Values.hostPorts.http) 1024) (lt (int .Values.hostPorts.https) 1024) }}
{{- if and .Values.hostNetwork.enabled (or .Values.trackers.transparent (and .Values.hostNetwork.bindPrivilegedPorts $privileged)) }}true{{ end }}
{{- end }}

{{- /* Whether replicas pass requests for agents on to each other. With chosen addresses they do not know each other. In the
       node's network it takes a port of the node, which is left alone where there is one replica only. */}}
{{- define "tidegate.forward" -}}
{{- $several := or (eq .Values.kind "DaemonSet") (gt (int .Values.replicas) 1) }}
{{- if and .Values.agents.forward (not .Values.listeners.addresses) (or $several (not .Values.hostNetwork.enabled)) }}true{{ end }}
{{- end }}

{{- define "tidegate.monitor" -}}
interval: {{ .interval }}
path: /metrics
honorLabels: false
relabelings:
# The alerts of the chart ask for this job.
- {targetLabel: job, replacement: tidegate}
{{- end }}
