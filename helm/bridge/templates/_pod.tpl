{{/* The pod that runs bridge: of the StatefulSet, and of the Deployment where the outbox is NATS */}}
{{- define "bridge.pod" -}}
{{- $at := include "bridge.admin" . | fromJson -}}
metadata:
  labels:
    {{- include "bridge.labels" . | nindent 4 }}
    app.kubernetes.io/component: bridge
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    kubectl.kubernetes.io/default-container: bridge
    checksum/start: {{ include "bridge.atStart" . | sha256sum }}
    {{- if .Values.secrets }}
    checksum/secrets: {{ .Values.secrets | toJson | sha256sum }}
    {{- end }}
    {{- if eq .Values.reload "restart" }}
    checksum/config: {{ printf "%s%s" (include "bridge.config" .) (.Values.rules | toJson) | sha256sum }}
    {{- end }}
    {{- with merge (dict) .Values.podAnnotations .Values.commonAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  {{- include "bridge.podPlace" . | nindent 2 }}
  {{- with include "bridge.spread" . | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  terminationGracePeriodSeconds: {{ .Values.terminationGracePeriodSeconds }}
  {{- with .Values.initContainers }}
  initContainers:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: bridge
      image: {{ include "bridge.image" . | quote }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      {{- with .Values.command }}
      command:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      args:
        {{- $watch := eq .Values.reload "watch" | ternary (list "--watch") list }}
        {{- concat (.Values.args | default (concat (list "run" "-c" "/etc/bridge/bridge.yaml") $watch)) .Values.extraArgs | toYaml | nindent 8 }}
      workingDir: /data
      env:
        {{- include "bridge.env" . | trim | nindent 8 }}
      {{- include "bridge.envFrom" . | nindent 6 }}
      ports:
        - name: metrics
          containerPort: {{ $at.metricsPort }}
        {{- if $at.exposed }}
        - name: admin
          containerPort: {{ $at.port }}
        {{- end }}
      {{- range $key := list "startupProbe" "livenessProbe" "readinessProbe" "lifecycle" "resources" }}
      {{- with get $.Values $key }}
      {{ $key }}:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- end }}
      securityContext:
        {{- toYaml .Values.securityContext | nindent 8 }}
      volumeMounts:
        {{- include "bridge.volumeMounts" . | nindent 8 }}
    {{- with .Values.sidecars }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    {{- include "bridge.volumes" . | nindent 4 }}
    {{- if not (include "bridge.ownsClaim" .) }}
    - name: data
      {{- if and .Values.persistence.enabled (not (include "bridge.usesNats" .)) }}
      persistentVolumeClaim:
        claimName: {{ .Values.persistence.existingClaim }}
      {{- else }}
      emptyDir: {}
      {{- end }}
    {{- end }}
{{- end }}

{{/* Whether the StatefulSet makes the claim of the outbox */}}
{{- define "bridge.ownsClaim" -}}
{{- if and .Values.persistence.enabled (not .Values.persistence.existingClaim) (not (include "bridge.usesNats" .)) }}true{{ end }}
{{- end }}
