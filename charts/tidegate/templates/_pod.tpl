{{- define "tidegate.pod" -}}
metadata:
  labels:
    {{- /* Without the chart's version: a new chart of the same program would restart every pod. */}}
    {{- include "tidegate.selector" . | nindent 4 }}
    app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
    app.kubernetes.io/part-of: tidegate
    {{- with .Values.commonLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    kubectl.kubernetes.io/default-container: tidegate
    {{- if .Values.defaultIssuer.enabled }}
    edge.tidegate.dev/issuer: {{ include "tidegate.issuer" . | sha256sum | trunc 16 | quote }}
    {{- end }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "tidegate.account" . }}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets: {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- if .Values.hostNetwork.enabled }}
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  {{- end }}
  enableServiceLinks: false
  # The pause before the end, the drain, and what the program itself needs to end.
  terminationGracePeriodSeconds: {{ add .Values.preStopSeconds .Values.drainSeconds 10 }}
  securityContext:
    {{- if .Values.podSecurityContext }}
    {{- toYaml .Values.podSecurityContext | nindent 4 }}
    {{- else if include "tidegate.root" . }}
    runAsUser: 0
    runAsGroup: 0
    fsGroup: 0
    seccompProfile: {type: RuntimeDefault}
    {{- else }}
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    fsGroup: 65532
    seccompProfile: {type: RuntimeDefault}
    {{- end }}
  containers:
  - name: tidegate
    image: {{ include "tidegate.image" . | quote }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    args:
    - operator
    - --http={{ include "tidegate.listen" (dict "root" . "ports" (prepend .Values.listeners.http.extraPorts (include "tidegate.http" .))) }}
    - --https={{ include "tidegate.listen" (dict "root" . "ports" (list (include "tidegate.https" .))) }}
    - --admin={{ .Values.containerPorts.admin }}
    {{- if .Values.api.accountsSecret }}
    - --accounts=/etc/tidegate-accounts/accounts.yaml
    {{- end }}
    {{- with .Values.tunnel.ports }}
    - --tunnel-ports={{ join "," . }}
    {{- end }}
    - --public-https-port={{ include "tidegate.public" . }}
    - --lease={{ include "tidegate.fullname" . }}
    {{- /* At the addresses of its pods an edge with chosen ones is not reached. */}}
    {{- if not .Values.listeners.addresses }}
    - --replicas-service={{ include "tidegate.fullname" . }}-replicas
    {{- end }}
    {{- if include "tidegate.forward" . }}
    - --replicas-listen={{ .Values.containerPorts.replicas }}
    {{- end }}
    {{- if .Values.hostNetwork.enabled }}
    - --handover
    {{- end }}
    {{- if .Values.service.enabled }}
    - --service={{ include "tidegate.fullname" . }}
    {{- end }}
    - --drain-timeout={{ .Values.drainSeconds }}s
    - --log-format={{ .Values.log.format }}
    - --log-level={{ .Values.log.level }}
    - --access-log={{ ternary "on" "off" .Values.log.access }}
    {{- if .Values.log.maskClientIP }}
    - --mask-client-ip
    {{- end }}
    {{- with .Values.log.redactQuery }}
    - --redact-query={{ join "," . }}
    {{- end }}
    {{- with .Values.className }}
    - --class={{ . }}
    {{- end }}
    {{- with .Values.watchNamespaces }}
    - --watch-namespace={{ join "," . }}
    {{- end }}
    {{- if .Values.defaultIssuer.enabled }}
    - --default-issuer-file=/etc/tidegate/issuer.yaml
    {{- end }}
    {{- with .Values.trustedProxies }}
    - --trusted-proxies={{ join "," . }}
    {{- end }}
    {{- if ne .Values.proxyProtocol "off" }}
    - --proxy-protocol={{ .Values.proxyProtocol }}
    {{- end }}
    {{- if not .Values.trackers.manageServices }}
    - --tracker-services=off
    {{- end }}
    {{- with .Values.backends.allowAddresses }}
    - --allow-addresses={{ join "," . }}
    {{- end }}
    {{- with .Values.backends.refuseAddresses }}
    - --refuse-addresses={{ join "," . }}
    {{- end }}
    {{- with .Values.publicAddresses }}
    - --public-address={{ join "," . }}
    {{- end }}
    {{- range .Values.extraArgs }}
    - {{ . | quote }}
    {{- end }}
    env:
    # For commands in the pod too.
    - name: TIDEGATE_STATE_DIR
      value: /var/lib/tidegate/state
    - name: POD_NAME
      valueFrom: {fieldRef: {fieldPath: metadata.name}}
    - name: POD_NAMESPACE
      valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
    - name: POD_IPS
      valueFrom: {fieldRef: {fieldPath: status.podIPs}}
    {{- with .Values.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- /* In the node's network a declared port is claimed on the node, and no second pod could start there. */}}
    {{- if not .Values.hostNetwork.enabled }}
    ports:
    - name: http
      containerPort: {{ .Values.containerPorts.http }}
      {{- if .Values.hostPorts.enabled }}
      hostPort: {{ .Values.hostPorts.http }}
      {{- end }}
    - name: https
      containerPort: {{ .Values.containerPorts.https }}
      {{- if .Values.hostPorts.enabled }}
      hostPort: {{ .Values.hostPorts.https }}
      {{- end }}
    {{- range .Values.listeners.http.extraPorts }}
    - name: http-{{ . }}
      containerPort: {{ . }}
      {{- if $.Values.hostPorts.enabled }}
      hostPort: {{ . }}
      {{- end }}
    {{- end }}
    {{- range fromYamlArray (include "tidegate.tunnelPorts" .) }}
    - name: {{ lower .protocol }}-{{ .number }}
      containerPort: {{ .number }}
      protocol: {{ .protocol }}
      {{- if $.Values.hostPorts.enabled }}
      hostPort: {{ .number }}
      {{- end }}
    {{- end }}
    - name: admin
      containerPort: {{ .Values.containerPorts.admin }}
    {{- if include "tidegate.forward" . }}
    - name: replicas
      containerPort: {{ .Values.containerPorts.replicas }}
    {{- end }}
    {{- end }}
    startupProbe:
      {{- if .Values.hostNetwork.enabled }}
      # This very process, and not whoever has the node's port: until this pod serves, that is the one before it. The
      # other probes begin after this one, when both would answer the same.
      exec: {command: [/tidegate, ready, --state-dir=/var/lib/tidegate/state]}
      timeoutSeconds: 5
      periodSeconds: 2
      # While the API server is away and nothing is known from before, a restart mends nothing.
      failureThreshold: 900
      {{- else }}
      # Time to read every list of a large cluster from a busy API server.
      httpGet: {path: /healthz, port: {{ .Values.containerPorts.admin }}}
      periodSeconds: 2
      failureThreshold: 60
      {{- end }}
    # Not whether the API server or a backend is well: a restart mends neither.
    livenessProbe:
      httpGet: {path: /healthz, port: {{ .Values.containerPorts.admin }}}
      periodSeconds: 10
      timeoutSeconds: 5
      failureThreshold: 6
    readinessProbe:
      httpGet: {path: /readyz, port: {{ .Values.containerPorts.admin }}}
      periodSeconds: 5
      timeoutSeconds: 3
      failureThreshold: 2
    {{- if .Values.preStopSeconds }}
    lifecycle:
      preStop:
        sleep: {seconds: {{ .Values.preStopSeconds }}}
    {{- end }}
    {{- with .Values.resources }}
    resources: {{- toYaml . | nindent 6 }}
    {{- end }}
    securityContext:
      {{- if .Values.securityContext }}
      {{- toYaml .Values.securityContext | nindent 6 }}
      {{- else }}
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      capabilities:
        drop: [ALL]
        {{- if include "tidegate.root" . }}
        add: {{ ternary "[NET_BIND_SERVICE, NET_ADMIN]" "[NET_BIND_SERVICE]" .Values.trackers.transparent }}
        {{- end }}
      {{- end }}
    volumeMounts:
    - {name: state, mountPath: /var/lib/tidegate}
    {{- if .Values.defaultIssuer.enabled }}
    - {name: issuer, mountPath: /etc/tidegate, readOnly: true}
    {{- end }}
    {{- if .Values.api.accountsSecret }}
    - {name: accounts, mountPath: /etc/tidegate-accounts, readOnly: true}
    {{- end }}
    {{- with .Values.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
  # Copies of what Secrets hold: keys are not to reach a disk. The program makes a folder of its own within, because
  # the mount belongs to root.
  - name: state
    emptyDir: {medium: Memory, sizeLimit: 64Mi}
  {{- if .Values.defaultIssuer.enabled }}
  - name: issuer
    configMap: {name: {{ include "tidegate.fullname" . }}-issuer}
  {{- end }}
  {{- with .Values.api.accountsSecret }}
  - name: accounts
    secret: {secretName: {{ . }}}
  {{- end }}
  {{- with .Values.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations: {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if and (eq .Values.kind "Deployment") .Values.topologySpread.key }}
  topologySpreadConstraints:
  - topologyKey: {{ .Values.topologySpread.key }}
    whenUnsatisfiable: {{ .Values.topologySpread.whenUnsatisfiable }}
    maxSkew: 1
    labelSelector:
      matchLabels: {{- include "tidegate.selector" . | nindent 8 }}
    # So that the pods of an old version do not count during an update.
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- end }}
