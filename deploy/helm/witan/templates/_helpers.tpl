{{- define "witan.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "witan.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "witan.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "witan.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "witan.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "witan.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "witan.image" -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}

{{/* The selector of pods: must not change during the life of a StatefulSet. */}}
{{- define "witan.selector" -}}
app.kubernetes.io/name: {{ include "witan.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "witan.labels" -}}
{{ include "witan.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "witan.shared" -}}
{{- if and .Values.database.existingSecret .Values.redis.existingSecret -}}true{{- end -}}
{{- end -}}

{{/* The domain of the nodes' pods. */}}
{{- define "witan.nodeDomain" -}}
{{- printf "%s-node.%s.svc.%s" (include "witan.fullname" .) .Release.Namespace .Values.clusterDomain -}}
{{- end -}}

{{- define "witan.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "witan.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Spreads the pods of a component over machines and zones. Takes a list: root, component. */}}
{{- define "witan.spread" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
- maxSkew: 1
  topologyKey: kubernetes.io/hostname
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- include "witan.selector" $root | nindent 6 }}
      app.kubernetes.io/component: {{ $component }}
- maxSkew: 1
  topologyKey: topology.kubernetes.io/zone
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- include "witan.selector" $root | nindent 6 }}
      app.kubernetes.io/component: {{ $component }}
{{- end -}}

{{/* The configuration generated from the values, as YAML; coordinator.config is merged over it. */}}
{{- define "witan.config" -}}
{{- $nodes := list -}}
{{- range $i := until (int .Values.node.initial) -}}
{{- $id := printf "%s-node-%d" (include "witan.fullname" $) $i -}}
{{- $nodes = append $nodes (dict "id" $id "host" (printf "%s.%s" $id (include "witan.nodeDomain" $)) "port" (int $.Values.node.port) "virtual_nodes" (int $.Values.node.virtualNodes)) -}}
{{- end -}}
{{- $security := dict "tokens" .Values.security.tokens "allow_anonymous" .Values.security.allowAnonymous -}}
{{- if .Values.tls.enabled -}}
{{- $listener := dict "cert_file" "/etc/witan/tls/coordinator/tls.crt" "key_file" "/etc/witan/tls/coordinator/tls.key" -}}
{{- if .Values.tls.coordinator.clientAuth -}}
{{- $_ := set $listener "client_ca_file" "/etc/witan/tls/coordinator/ca.crt" -}}
{{- end -}}
{{- $_ := set $security "tls" $listener -}}
{{- $peer := "/etc/witan/tls/peer" -}}
{{- $_ := set $security "nodes" (dict "tls" (dict "ca_file" (printf "%s/ca.crt" $peer) "cert_file" (printf "%s/tls.crt" $peer) "key_file" (printf "%s/tls.key" $peer))) -}}
{{- end -}}
{{- with .Values.security.jwt -}}
{{- $_ := set $security "jwt" (dict "algorithm" .algorithm "issuer" .issuer "audience" .audience "key_file" "/etc/witan/jwt/key") -}}
{{- end -}}
{{- with .Values.security.rateLimits -}}
{{- $_ := set $security "rate_limits" . -}}
{{- end -}}
{{- if .Values.security.audit.enabled -}}
{{- $_ := set $security "audit" (dict "file" "/var/lib/witan/audit.jsonl" "max_bytes" (int64 .Values.security.audit.maxBytes) "keep" (int .Values.security.audit.keep)) -}}
{{- end -}}
{{- $config := dict
  "server" (dict "host" "0.0.0.0" "port" (int .Values.coordinator.service.port) "data_dir" "/var/lib/witan" "shutdown_timeout" (printf "%ds" (int .Values.coordinator.shutdownSeconds)))
  "storage_nodes" $nodes
  "plugins" (dict "folder" .Values.coordinator.plugins.folder)
  "metrics" (dict "enabled" true "host" "0.0.0.0" "port" (int .Values.coordinator.service.metricsPort) "path" "/metrics")
  "logging" (dict "level" "info" "format" "json")
  "security" $security -}}
{{- if .Values.database.existingSecret -}}
{{- $database := dict "url_file" "/etc/witan/database/url" -}}
{{- if .Values.database.directKey -}}
{{- $_ := set $database "direct_url_file" "/etc/witan/database/direct-url" -}}
{{- end -}}
{{- with .Values.database.sslMode -}}
{{- $_ := set $database "ssl_mode" . -}}
{{- end -}}
{{- if .Values.database.caSecret -}}
{{- $_ := set $database "ca_file" "/etc/witan/database-ca/ca.crt" -}}
{{- end -}}
{{- $_ := set $config "database" $database -}}
{{- end -}}
{{- if .Values.redis.existingSecret -}}
{{- $_ := set $config "redis" (dict "url_file" "/etc/witan/redis/url") -}}
{{- end -}}
{{- with .Values.coordinator.trustedAddresses -}}
{{- $_ := set $config.server "trusted_addresses" . -}}
{{- end -}}
{{- with .Values.coordinator.tenants -}}
{{- $_ := set $config "tenants" . -}}
{{- end -}}
{{- toYaml (mergeOverwrite $config (deepCopy .Values.coordinator.config)) -}}
{{- end -}}

{{/* Refuses values that cannot work before anything is installed. */}}
{{- define "witan.check" -}}
{{- if and (gt (int .Values.coordinator.replicas) 1) (not (include "witan.shared" .)) -}}
{{- fail "coordinator.replicas: several coordinators share PostgreSQL and Redis: set database.existingSecret and redis.existingSecret, or coordinator.replicas=1" -}}
{{- end -}}
{{- if and .Values.coordinator.autoscaling.enabled (not (include "witan.shared" .)) -}}
{{- fail "coordinator.autoscaling.enabled: several coordinators share PostgreSQL and Redis: set database.existingSecret and redis.existingSecret" -}}
{{- end -}}
{{- if lt (int .Values.node.replicas) (int .Values.node.initial) -}}
{{- fail "node.replicas: less than node.initial: some nodes of the first start would be missing" -}}
{{- end -}}
{{- if .Values.tls.enabled -}}
{{- range $part := list "coordinator" "peer" "node" -}}
{{- if not (index $.Values.tls $part).secret -}}
{{- fail (printf "tls.%s.secret: the name of a Secret with tls.crt, tls.key and ca.crt is missing; set it, or tls.enabled=false together with security.allowAnonymous=true if nobody else can reach the network" $part) -}}
{{- end -}}
{{- end -}}
{{- else if not .Values.security.allowAnonymous -}}
{{- fail "tls.enabled: without TLS, others on the network can read tokens and secrets, and nodes serve only their own pod: set tls.enabled=true, or security.allowAnonymous=true if nobody else can reach the network" -}}
{{- end -}}
{{- if and (not .Values.security.tokens) (not .Values.security.jwt) (not .Values.tls.coordinator.clientAuth) (not .Values.security.allowAnonymous) -}}
{{- fail "security: clients are not authenticated: set security.tokens=true, security.jwt or tls.coordinator.clientAuth=true, or security.allowAnonymous=true" -}}
{{- end -}}
{{- end -}}

{{/* The command with which a pod checks the health of a coordinator over gRPC. Takes a list: root, host. */}}
{{- define "witan.askCoordinator" -}}
{{- $root := index . 0 -}}
{{- $host := index . 1 -}}
- /usr/local/bin/witan
- health
- --service=witan.v1.CoordinatorService
- --timeout=4s
- --endpoint={{ ternary "https" "http" $root.Values.tls.enabled }}://{{ $host }}:{{ $root.Values.coordinator.service.port }}
{{- if $root.Values.tls.enabled }}
- --ca-file=/etc/witan/tls/coordinator/ca.crt
- --server-name={{ include "witan.fullname" $root }}-coordinator.{{ $root.Release.Namespace }}.svc
{{- if $root.Values.tls.coordinator.clientAuth }}
- --client-cert-file=/etc/witan/tls/coordinator/tls.crt
- --client-key-file=/etc/witan/tls/coordinator/tls.key
{{- end }}
{{- end }}
{{- end -}}
