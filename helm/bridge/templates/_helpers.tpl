{{/* Names and labels */}}
{{- define "bridge.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "bridge.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "bridge.selectorLabels" -}}
app.kubernetes.io/name: {{ include "bridge.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "bridge.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "bridge.selectorLabels" . }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | trunc 63 | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* metadata: takes (list $ name annotations); labels come last, so that more can follow */}}
{{- define "bridge.metadata" -}}
{{- $root := index . 0 -}}
name: {{ index . 1 }}
namespace: {{ $root.Release.Namespace }}
{{- with merge (dict) (index . 2) $root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
labels:
  {{- include "bridge.labels" $root | nindent 2 }}
{{- end }}

{{- define "bridge.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "bridge.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "bridge.image" -}}
{{- $image := .Values.image -}}
{{- with $image.registry }}{{ . }}/{{ end }}{{ $image.repository }}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{/* Addresses */}}
{{- define "bridge.admin" -}}
{{- $admin := .Values.config.admin | default dict -}}
{{- $listen := $admin.listen | default "127.0.0.1:8080" -}}
{{- $metrics := $admin.metrics_listen | default "0.0.0.0:9090" -}}
{{- $host := regexReplaceAll ":[0-9]+$" $listen "" | trimPrefix "[" | trimSuffix "]" -}}
{{- dict
      "listen" $listen
      "port" (regexFind "[0-9]+$" $listen | int)
      "metrics" $metrics
      "metricsPort" (regexFind "[0-9]+$" $metrics | int)
      "exposed" (not (or (hasPrefix "127." $host) (eq $host "::1") (eq $host "localhost")))
    | toJson }}
{{- end }}

{{/* bridge.yaml as the pod gets it, as JSON: which is YAML, and keeps numbers as they are */}}
{{- define "bridge.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- $at := include "bridge.admin" . | fromJson -}}
{{- $admin := deepCopy ($config.admin | default dict) -}}
{{- $_ := set $admin "metrics_listen" $at.metrics -}}
{{- if $at.exposed }}
{{- $full := include "bridge.fullname" . }}
{{- $hosts := concat ($admin.hosts | default list) (list $full (printf "%s.%s" $full .Release.Namespace) (printf "%s.%s.svc" $full .Release.Namespace)) }}
{{- if .Values.ingress.enabled }}
{{- range .Values.ingress.hosts }}{{ $hosts = append $hosts .host }}{{ end }}
{{- end }}
{{- $_ := set $admin "hosts" (uniq $hosts) }}
{{- end }}
{{- $_ := set $config "admin" $admin -}}
{{- $rules := kindIs "string" $config.rules | ternary (list $config.rules) ($config.rules | default list) -}}
{{- range .Values.shippedRules }}
{{- $rules = append $rules (printf "/usr/share/bridge/rules/%s.yaml" .) }}
{{- end }}
{{- if .Values.rules }}
{{- $rules = append $rules "rules/*.yaml" }}
{{- end }}
{{- if $rules }}
{{- $_ := set $config "rules" (uniq $rules) }}
{{- end }}
{{- if include "bridge.usesNats" . }}
{{- $_ := set $config "outbox" (include "bridge.outbox" .) }}
{{- range $name, $sink := $config.sinks }}
{{- if and (eq (toString $sink.type) "mqtt") (not (hasKey $sink "status_topic")) }}
{{- $_ := set $sink "status_topic" nil }}{{/* retained once for all: a pod that goes would say offline for the others */}}
{{- end }}
{{- end }}
{{- end }}
{{- $config | toPrettyJson }}
{{- end }}

{{/* What bridge reads only at its start: a change of it restarts the pod even with reload: watch */}}
{{- define "bridge.atStart" -}}
{{- $at := include "bridge.admin" . | fromJson -}}
{{- $keys := pick .Values.config "outbox" "durability" "dedup_window" "max_size" "overflow" "shutdown_timeout" "tracing" -}}
{{- if .Values.outbox.nats.servers }}
{{- $_ := set $keys "outbox" (include "bridge.outbox" .) }}
{{- end }}
{{- merge $keys (pick $at "listen" "metrics") | toJson }}
{{- end }}

{{/* The outbox */}}
{{- define "bridge.usesNats" -}}
{{- if or .Values.outbox.nats.servers (regexMatch "^(nats|tls):" (toString .Values.config.outbox)) }}true{{ end }}
{{- end }}

{{- define "bridge.workload" -}}
{{- if include "bridge.usesNats" . }}Deployment{{ else }}StatefulSet{{ end }}
{{- end }}

{{/* Whether somebody else sets the number of replicas */}}
{{- define "bridge.autoscaled" -}}
{{- if or .Values.autoscaling.enabled .Values.keda.enabled }}true{{ end }}
{{- end }}

{{/* outbox of bridge.yaml, without user and password */}}
{{- define "bridge.outbox" -}}
{{- $nats := .Values.outbox.nats -}}
{{- if $nats.servers }}
{{- $scheme := regexFind "^[a-z]+" (first $nats.servers) }}
{{- $hosts := list }}
{{- range $nats.servers }}{{ $hosts = append $hosts (regexReplaceAll "^[a-z]+://|/$" . "") }}{{ end }}
{{- $options := list (printf "stream=%s" $nats.stream) (printf "replicas=%d" (int $nats.replicas)) (printf "storage=%s" $nats.storage) }}
{{- range $key, $value := $nats.options }}{{ $options = append $options (printf "%s=%v" $key $value) }}{{ end }}
{{- with $nats.credentialsKey }}{{ $options = append $options "credentials=/run/secrets/nats/credentials" }}{{ end }}
{{- range $option := list "ca" "cert" "key" }}
{{- if get $nats.tls (printf "%sKey" $option) }}{{ $options = append $options (printf "%s=/run/secrets/nats/%s.pem" $option $option) }}{{ end }}
{{- end }}
{{- printf "%s://%s?%s" $scheme (join "," $hosts) (join "&" $options) }}
{{- else }}
{{- .Values.config.outbox | default "sqlite:bridge.db" }}
{{- end }}
{{- end }}

{{/* The same for people: servers only */}}
{{- define "bridge.shownOutbox" -}}
{{- regexReplaceAll "//.*@" (include "bridge.outbox" . | regexFind "^[^?]*") "//" }}
{{- end }}

{{/* Where a token, or user and password, are in a Secret, the address gets them from the environment: the kubelet
puts the variables that stand before it into it */}}
{{- define "bridge.natsEnv" -}}
{{- $nats := .Values.outbox.nats -}}
{{- if $nats.servers }}
{{- $outbox := include "bridge.outbox" . }}
{{- $login := empty $nats.tokenKey | not | ternary "$$(NATS_TOKEN)@" (empty $nats.usernameKey | not | ternary "$$(NATS_USER):$$(NATS_PASSWORD)@" "") }}
{{- $outbox = regexReplaceAll "^([a-z]+://)" $outbox (printf "${1}%s" $login) }}
{{- range $name, $key := dict "NATS_USER" $nats.usernameKey "NATS_PASSWORD" $nats.passwordKey "NATS_TOKEN" $nats.tokenKey }}
{{- if $key }}
- name: {{ $name }}
  valueFrom:
    secretKeyRef: {name: {{ $nats.existingSecret }}, key: {{ $key }}}
{{- end }}
{{- end }}
{{- if or $login $.Values.existingConfigMap }}
- name: BRIDGE_OUTBOX
  value: {{ $outbox | squote }}
{{- end }}
{{- end }}
{{- end }}

{{- define "bridge.hasNatsFiles" -}}
{{- $nats := .Values.outbox.nats -}}
{{- if and $nats.servers (or $nats.credentialsKey $nats.tls.caKey $nats.tls.certKey) }}true{{ end }}
{{- end }}

{{- define "bridge.natsFiles" -}}
{{- $nats := .Values.outbox.nats -}}
{{- with $nats.credentialsKey }}
- secret:
    name: {{ $nats.existingSecret }}
    items:
      - {key: {{ . }}, path: credentials}
{{- end }}
{{- $tls := $nats.tls }}
{{- $fromMap := and $tls.caKey $tls.existingConfigMap }}
{{- if $fromMap }}
- configMap:
    name: {{ $tls.existingConfigMap }}
    items:
      - {key: {{ $tls.caKey }}, path: ca.pem}
{{- end }}
{{- if or $tls.certKey (and $tls.caKey (not $fromMap)) }}
- secret:
    name: {{ $tls.existingSecret }}
    items:
      {{- if not $fromMap }}{{ with $tls.caKey }}
      - {key: {{ . }}, path: ca.pem}
      {{- end }}{{ end }}
      {{- with $tls.certKey }}
      - {key: {{ . }}, path: cert.pem}
      - {key: {{ $tls.keyKey }}, path: key.pem}
      {{- end }}
{{- end }}
{{- end }}

{{/* Seconds of a duration of bridge.yaml, such as 1.5m; takes the text */}}
{{- define "bridge.seconds" -}}
{{- $units := dict "ms" 0.001 "s" 1.0 "m" 60.0 "h" 3600.0 "d" 86400.0 -}}
{{- mulf (regexFind "^[0-9.]+" . | float64) (get $units (regexFind "[a-z]+$" .)) }}
{{- end }}

{{- define "bridge.configMapName" -}}
{{- .Values.existingConfigMap | default (printf "%s-config" (include "bridge.fullname" .)) }}
{{- end }}

{{/* The pod's parts that `helm test` shares with it */}}
{{- define "bridge.env" -}}
- name: BRIDGE_CONFIG
  value: /etc/bridge/bridge.yaml
{{- if .Values.existingConfigMap }}
- name: BRIDGE_ADMIN__METRICS_LISTEN
  value: {{ (include "bridge.admin" . | fromJson).metrics | quote }}
{{- end }}
{{- range $name, $ref := .Values.existingSecrets }}
- name: {{ $name }}
  valueFrom:
    secretKeyRef:
      name: {{ $ref.name }}
      key: {{ $ref.key }}
{{- end }}
{{- include "bridge.natsEnv" . }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "bridge.envFrom" -}}
{{- $found := list }}
{{- if .Values.secrets }}
{{- $found = append $found (dict "secretRef" (dict "name" (include "bridge.fullname" .))) }}
{{- end }}
{{- with .Values.existingSecret }}
{{- $found = append $found (dict "secretRef" (dict "name" .)) }}
{{- end }}
{{- with concat $found .Values.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "bridge.hasSecrets" -}}
{{- if or .Values.secrets .Values.existingSecret .Values.existingSecrets }}true{{ end }}
{{- end }}

{{- define "bridge.volumes" -}}
- name: config
  projected:
    sources:
      - configMap:
          name: {{ include "bridge.configMapName" . }}
          {{- if not .Values.existingConfigMap }}
          items:
            - {key: bridge.yaml, path: bridge.yaml}
          {{- end }}
      {{- if .Values.rules }}
      - configMap:
          name: {{ include "bridge.fullname" . }}-rules
          items:
            {{- range $name, $_ := .Values.rules }}
            - {key: {{ $name }}, path: rules/{{ $name }}}
            {{- end }}
      {{- end }}
{{- if include "bridge.hasSecrets" . }}
- name: secrets
  projected:
    defaultMode: 288 # 0440
    sources:
      {{- if .Values.secrets }}
      - secret:
          name: {{ include "bridge.fullname" . }}
      {{- end }}
      {{- with .Values.existingSecret }}
      - secret:
          name: {{ . }}
      {{- end }}
      {{- range $name, $ref := .Values.existingSecrets }}
      - secret:
          name: {{ $ref.name }}
          items:
            - {key: {{ $ref.key }}, path: {{ $name }}}
      {{- end }}
{{- end }}
{{- if include "bridge.hasNatsFiles" . }}
- name: nats
  projected:
    defaultMode: 288 # 0440
    sources:
      {{- include "bridge.natsFiles" . | trim | nindent 6 }}
{{- end }}
- name: tmp
  emptyDir: {}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "bridge.volumeMounts" -}}
- name: config
  mountPath: /etc/bridge
  readOnly: true
{{- if include "bridge.hasSecrets" . }}
- name: secrets
  mountPath: /run/secrets/bridge
  readOnly: true
{{- end }}
{{- if include "bridge.hasNatsFiles" . }}
- name: nats
  mountPath: /run/secrets/nats
  readOnly: true
{{- end }}
- name: data
  mountPath: /data
- name: tmp
  mountPath: /tmp
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "bridge.podPlace" -}}
serviceAccountName: {{ include "bridge.serviceAccountName" . }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- range $key := list "priorityClassName" "schedulerName" "runtimeClassName" "nodeSelector" "tolerations" "hostAliases" "dnsPolicy" "dnsConfig" }}
{{- with get $.Values $key }}
{{ $key }}:
  {{- if kindIs "string" . }} {{ . | quote }}{{ else }}{{ toYaml . | nindent 2 }}{{ end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Where replicas are put beside each other; a single one has nobody to keep away from */}}
{{- define "bridge.spread" -}}
{{- $own := include "bridge.ownLabels" . | fromYaml -}}
{{- $several := include "bridge.usesNats" . -}}
{{- $affinity := .Values.affinity -}}
{{- $spread := .Values.topologySpreadConstraints -}}
{{- if and $several (not $affinity) }}
{{- $term := dict "topologyKey" "kubernetes.io/hostname" "labelSelector" (dict "matchLabels" $own) }}
{{- $affinity = dict "podAntiAffinity" (dict "preferredDuringSchedulingIgnoredDuringExecution" (list (dict "weight" 100 "podAffinityTerm" $term))) }}
{{- end }}
{{- if and $several (not $spread) }}
{{- $spread = list (dict "maxSkew" 1 "topologyKey" "topology.kubernetes.io/zone" "whenUnsatisfiable" "ScheduleAnyway" "labelSelector" (dict "matchLabels" $own)) }}
{{- end }}
{{- with $affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $spread }}
topologySpreadConstraints:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* What Services, budgets and the workload itself know the pods that run bridge by */}}
{{- define "bridge.ownLabels" -}}
{{ include "bridge.selectorLabels" . }}
app.kubernetes.io/component: bridge
{{- end }}

{{/* Network: the ports that the URLs of the config need. Each is {port, cidr}; cidr "" is any address. */}}
{{- define "bridge.egress" -}}
{{- $ports := dict "http" 80 "https" 443 "mqtt" 1883 "mqtts" 8883 "ws" 80 "wss" 443 "nats" 4222 "tls" 4222 -}}
{{- $urls := list -}}
{{- range $name, $source := .Values.config.sources }}
{{- if eq ($source.transport | default "http") "grpc" }}
{{- $plain := hasPrefix "http://" (toString $source.url) }}
{{- $grpc := $source.grpc_address | default (printf "%s:%s" (regexReplaceAll ":[0-9]+$" (get (urlParse (toString $source.url)) "host") "") ($plain | ternary "1884" "8884")) }}
{{- $urls = append $urls (printf "http://%s" $grpc) }}
{{- end }}
{{- with $source.url }}{{ $urls = append $urls . }}{{ end }}
{{- end }}
{{- range $name, $sink := .Values.config.sinks }}
{{- if $sink.proxy }}{{ $urls = append $urls $sink.proxy }}
{{- else if eq (toString $sink.type) "slack" }}{{ $urls = append $urls ($sink.api_url | default "https://slack") }}
{{- else if $sink.url }}{{ $urls = append $urls $sink.url }}{{ end }}
{{- end }}
{{- with .Values.config.tracing }}{{ with .endpoint }}{{ $urls = append $urls . }}{{ end }}{{ end }}
{{- if include "bridge.usesNats" . }}
{{- $outbox := include "bridge.shownOutbox" . }}
{{- $scheme := regexFind "^[a-z]+" $outbox }}
{{- range regexReplaceAll "^[a-z]+://" $outbox "" | splitList "," }}{{ $urls = append $urls (printf "%s://%s" $scheme .) }}{{ end }}
{{- end }}
{{- $found := list -}}
{{- range $urls }}
{{- if not (hasPrefix "${" .) }}
{{- $url := urlParse . }}
{{- $host := $url.host }}
{{- $port := regexFind ":[0-9]+$" $host | trimPrefix ":" }}
{{- $port = $port | default (get $ports $url.scheme | toString) }}
{{- $name := regexReplaceAll ":[0-9]+$" $host "" }}
{{- $cidr := "" }}
{{- if regexMatch "^[0-9]+\\.[0-9]+\\.[0-9]+\\.[0-9]+$" $name }}{{ $cidr = printf "%s/32" $name }}
{{- else if hasPrefix "[" $name }}{{ $cidr = printf "%s/128" ($name | trimPrefix "[" | trimSuffix "]") }}{{ end }}
{{- $found = append $found (dict "port" (int $port) "cidr" $cidr) }}
{{- end }}
{{- end }}
{{- dict "found" (uniq $found) | toJson }}
{{- end }}

{{/* URLs that stand in a Secret: the network policy cannot know them */}}
{{- define "bridge.unknownUrls" -}}
{{- if hasPrefix "${" (toString .Values.config.outbox) }} config.outbox{{ end }}
{{- range $section := list "sources" "sinks" }}
{{- range $name, $each := (get $.Values.config $section | default dict) }}
{{- if and (kindIs "string" $each.url) (hasPrefix "${" (toString $each.url)) }} {{ $section }}.{{ $name }}.url{{ end }}
{{- end }}
{{- end }}
{{- end }}

{{/* PromQL: age in seconds of the oldest delivery that more replicas could help. Not of a sink that is paused, nor of
one where only a few wait, to be tried again. Every replica tells of the queue they share, hence max. Without any
series it is empty, not 0: an autoscaler that knows nothing changes nothing. */}}
{{- define "bridge.backlogAge" -}}
{{- $these := printf "{namespace=%q, job=%q}" .Release.Namespace .Release.Name -}}
max(max by (sink) (bridge_outbox_oldest_age_seconds{{ $these }}) and on (sink) (max by (sink) (bridge_outbox_rows{{ $these }}) >= {{ .Values.keda.minWaiting }}) unless on (sink) (max by (sink) (bridge_sink_paused{{ $these }}) == 1)) or 0 * max(bridge_outbox_oldest_age_seconds{{ $these }})
{{- end }}

{{/* What the schema cannot say */}}
{{- define "bridge.validate" -}}
{{- $at := include "bridge.admin" . | fromJson -}}
{{- $admin := .Values.config.admin | default dict -}}
{{- if and .Values.existingConfigMap (or .Values.rules .Values.shippedRules) }}
{{- fail "existingConfigMap: it brings the rules too; put them there, and leave rules and shippedRules empty" }}
{{- end }}
{{- if and .Values.ingress.enabled (not $at.exposed) }}
{{- fail "ingress.enabled: bridge listens on loopback only; set config.admin.listen: 0.0.0.0:8080 and config.admin.token" }}
{{- end }}
{{- if and $at.exposed (not $admin.token) (not .Values.existingConfigMap) }}
{{- fail "config.admin.listen: listening beyond loopback needs config.admin.token, such as ${env:ADMIN_TOKEN}" }}
{{- end }}
{{- $shutdown := .Values.config.shutdown_timeout | default "20s" }}
{{- if le (float64 .Values.terminationGracePeriodSeconds) (addf (include "bridge.seconds" $shutdown | float64) 5.0) }}
{{- fail "terminationGracePeriodSeconds: needs more than config.shutdown_timeout and 5 s, or deliveries in flight are cut off and made again" }}
{{- end }}
{{- if include "bridge.usesNats" . }}
{{- include "bridge.validateNats" . }}
{{- end }}
{{- if eq $at.port $at.metricsPort }}
{{- fail "config.admin: listen and metrics_listen need two ports" }}
{{- end }}
{{- end }}

{{- define "bridge.validateNats" -}}
{{- $nats := .Values.outbox.nats -}}
{{- if and $nats.servers .Values.config.outbox }}
{{- fail "config.outbox: leave it out, outbox.nats says where the outbox is" }}
{{- end }}
{{- $schemes := list }}
{{- range $nats.servers }}{{ $schemes = append $schemes (regexFind "^[a-z]+" .) }}{{ end }}
{{- if gt (len (uniq $schemes)) 1 }}
{{- fail "outbox.nats.servers: all nats://, or all tls://" }}
{{- end }}
{{- if and $nats.tls.caKey (not $nats.tls.existingSecret) (not $nats.tls.existingConfigMap) }}
{{- fail "outbox.nats.tls.caKey: say which tls.existingSecret or tls.existingConfigMap has it" }}
{{- end }}
{{- range $name, $sink := .Values.config.sinks }}
{{- if and (eq (toString $sink.type) "mqtt") $sink.client_id }}
{{- fail (printf "config.sinks.%s.client_id: replicas with one client id throw each other off the broker; leave it out, each then has bridge-<pod>-%s" $name $name) }}
{{- end }}
{{- end }}
{{- if and .Values.autoscaling.enabled (not .Values.autoscaling.targetAgeSeconds) (not .Values.autoscaling.targetCPU) }}
{{- fail "autoscaling.enabled: needs targetAgeSeconds or targetCPU to go by" }}
{{- end }}
{{- if and (include "bridge.autoscaled" .) (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) }}
{{- fail "autoscaling.minReplicas: more than maxReplicas" }}
{{- end }}
{{- end }}
