{{- define "operato-runner.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* 44 characters: names of the objects add up to 19 to it. */}}
{{- define "operato-runner.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 44 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "operato-runner.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 44 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 44 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "operato-runner.selectorLabels" -}}
app.kubernetes.io/name: {{ include "operato-runner.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "operato-runner.labels" -}}
{{ include "operato-runner.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "operato-runner.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "operato-runner.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "operato-runner.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "operato-runner.modulesConfigMap" -}}
{{- default (printf "%s-modules" (include "operato-runner.fullname" .)) .Values.modules.existingConfigMap -}}
{{- end -}}

{{/* The addresses of the NATS servers with commas between them; empty without a cluster. */}}
{{- define "operato-runner.servers" -}}
{{- $given := .Values.cluster.servers -}}
{{- if kindIs "slice" $given -}}{{- join "," $given -}}{{- else -}}{{- $given -}}{{- end -}}
{{- end -}}

{{/* Their ports, each once, as JSON. */}}
{{- define "operato-runner.serverPorts" -}}
{{- $ports := list -}}
{{- range $server := regexSplit "[\\s,]+" (include "operato-runner.servers" .) -1 -}}
{{- $ports = append $ports (int (default "4222" (regexFind "[0-9]+$" (regexFind ":[0-9]+/?$" $server | trimSuffix "/")))) -}}
{{- end -}}
{{- uniq $ports | toJson -}}
{{- end -}}

{{/* The Secret with keys: the user's, or the chart's own; empty without keys. */}}
{{- define "operato-runner.keysSecret" -}}
{{- if .Values.auth.existingSecret -}}
{{- .Values.auth.existingSecret -}}
{{- else if or .Values.auth.jwtSecret .Values.auth.publicKey -}}
{{- printf "%s-keys" (include "operato-runner.fullname" .) -}}
{{- end -}}
{{- end -}}

{{/* The names of its keys; empty for what it does not have. */}}
{{- define "operato-runner.secretKey" -}}
{{- if .Values.auth.existingSecret -}}{{ .Values.auth.secretKey }}{{- else if .Values.auth.jwtSecret -}}jwt-secret{{- end -}}
{{- end -}}
{{- define "operato-runner.publicKeyKey" -}}
{{- if .Values.auth.existingSecret -}}{{ .Values.auth.publicKeyKey }}{{- else if .Values.auth.publicKey -}}jwt-public-key.pem{{- end -}}
{{- end -}}

{{/* What a probe asks: `door` is rest or grpc, `path` that of REST. */}}
{{- define "operato-runner.ask" -}}
{{- $tls := .root.Values.tls.existingSecret -}}
{{- if or .root.Values.tls.clientCa (and $tls (eq .door "grpc")) -}}
exec:
  command: [/opt/operato/bin/python, -m, runner.health, /tmp/operato-ready.json]
{{- else if eq .door "grpc" -}}
grpc:
  port: 50051
{{- else -}}
httpGet:
  path: {{ .path }}
  port: rest
  scheme: {{ ternary "HTTPS" "HTTP" (not (empty $tls)) }}
{{- end -}}
{{- end -}}

{{/* What the schema cannot say: refuse, with what to do. */}}
{{- define "operato-runner.check" -}}
{{- $v := .Values -}}
{{- $many := or (gt (int $v.replicas) 1) $v.autoscaling.enabled -}}
{{- $servers := include "operato-runner.servers" . -}}
{{- if and $many (not $servers) -}}
{{- fail "replicas: more than one runner needs a cluster, since without it each has a history, a queue and registered modules of its own. Set cluster.servers to the addresses of NATS servers (docs/cluster.md), or replicas=1 and autoscaling.enabled=false" -}}
{{- end -}}
{{- range $name := list "credentials" "tls" -}}
{{- if and (index $v.cluster $name).existingSecret (not $servers) -}}
{{- fail (printf "cluster.%s.existingSecret: needs cluster.servers" $name) -}}
{{- end -}}
{{- end -}}
{{- if and $v.cluster.tls.clientCertificate (not $v.cluster.tls.existingSecret) -}}
{{- fail "cluster.tls.clientCertificate: needs cluster.tls.existingSecret" -}}
{{- end -}}
{{- if and $v.autoscaling.enabled (gt (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas)) -}}
{{- fail "autoscaling.minReplicas: must not be above autoscaling.maxReplicas" -}}
{{- end -}}
{{- $auth := $v.auth -}}
{{- $given := or $auth.existingSecret $auth.jwtSecret $auth.publicKey $auth.jwksUrl -}}
{{- if not (or $given $auth.ownSecret) -}}
{{- fail "auth: no key for tokens. Set auth.existingSecret (a Secret with the key jwt-secret: `kubectl create secret generic NAME --from-literal=jwt-secret=$(openssl rand -base64 48)`), auth.publicKey or auth.jwksUrl; to try it out auth.ownSecret=true" -}}
{{- end -}}
{{- if and $auth.ownSecret $given -}}
{{- fail "auth.ownSecret: is for a runner without keys; leave it out where others are given" -}}
{{- end -}}
{{- if and $auth.ownSecret $many -}}
{{- fail "auth.ownSecret: every runner would make a secret of its own, and refuse the tokens of the others; set auth.existingSecret" -}}
{{- end -}}
{{- if and $auth.existingSecret (or $auth.jwtSecret $auth.publicKey) -}}
{{- fail "auth.existingSecret: give the keys in this Secret or as auth.jwtSecret and auth.publicKey, not both" -}}
{{- end -}}
{{- if and $auth.existingSecret (not (or $auth.secretKey $auth.publicKeyKey)) -}}
{{- fail "auth.secretKey: name a key of the Secret here or in auth.publicKeyKey" -}}
{{- end -}}
{{- if and $auth.jwksUrl (include "operato-runner.publicKeyKey" .) -}}
{{- fail "auth.jwksUrl: give a public key or a JWKS URL, not both" -}}
{{- end -}}
{{- if not (or $v.rest.enabled $v.grpc.enabled) -}}
{{- fail "rest.enabled: with grpc.enabled=false too there is no door" -}}
{{- end -}}
{{- range $door := list "rest" "grpc" -}}
{{- $ingress := index $v.ingress $door -}}
{{- if and $ingress.enabled (not (index $v $door).enabled) -}}
{{- fail (printf "ingress.%s.enabled: needs %s.enabled" $door $door) -}}
{{- end -}}
{{- if and $ingress.enabled (not $ingress.host) -}}
{{- fail (printf "ingress.%s.host: is needed" $door) -}}
{{- end -}}
{{- end -}}
{{- if and $v.serviceMonitor.enabled (not $v.rest.enabled) -}}
{{- fail "serviceMonitor.enabled: metrics are served by REST; set rest.enabled=true" -}}
{{- end -}}
{{- if and $v.tls.clientCa (not $v.tls.existingSecret) -}}
{{- fail "tls.clientCa: needs tls.existingSecret" -}}
{{- end -}}
{{- if and $v.serviceMonitor.enabled $v.tls.clientCa -}}
{{- fail "serviceMonitor.enabled: Prometheus has no client certificate from this chart; set it up beside it, or tls.clientCa=false" -}}
{{- end -}}
{{- if not $v.modules.existingConfigMap -}}
{{- if hasKey $v.modules.files "modules.yaml" -}}
{{- fail "modules.files: modules.yaml itself is modules.inline" -}}
{{- end -}}
{{- $file := fromYaml $v.modules.inline -}}
{{- if hasKey $file "Error" -}}
{{- fail (printf "modules.inline: is not YAML: %s" (get $file "Error")) -}}
{{- end -}}
{{- if hasKey (default dict (get $file "runner")) "jwt_secret" -}}
{{- fail "modules.inline: runner.jwt_secret would be in a ConfigMap for all to read; use auth.existingSecret" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A setting as a variable says it: numbers come as floats out of values, and 1000000 must not become 1e+06. */}}
{{- define "operato-runner.text" -}}
{{- if and (kindIs "float64" .) (eq (float64 (int64 .)) .) -}}{{ int64 . }}{{- else -}}{{ toString . }}{{- end -}}
{{- end -}}
