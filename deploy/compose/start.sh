#!/bin/sh
# Starts deploy/compose.yaml: secrets, databases, the first tokens, then everything. Can be run again at any time.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
secrets=$here/secrets
compose() { docker compose --file "$here/../compose.yaml" "$@"; }

# token SERVICE FILE: lets the service create a token, and stores it where other users cannot read it.
token() {
    if [ -s "$secrets/$2" ]; then
        return
    fi
    token=$(compose run --rm -T "$1")
    case $token in
        witan_*_*) ;;
        *) echo "error: $1 printed no token" >&2; exit 1 ;;
    esac
    printf '%s' "$token" >"$secrets/$2"
}

"$here/prepare.sh"
compose up --detach --wait postgres redis
token first-token operator_token
token metrics-token metrics_token
compose up --detach --wait

cat <<END

Coordinators:  https://localhost:50051, https://localhost:50061
Token:         $secrets/operator_token
Authority:     $secrets/ca.pem
Prometheus:    http://localhost:9091
Grafana:       http://localhost:3000, user admin, password in $secrets/grafana_password

  witan --endpoint https://localhost:50051 --ca-file $secrets/ca.pem --token-file $secrets/operator_token tenant create demo
END
