#!/bin/sh
# Creates what deploy/compose.yaml needs but must not be in a repository: passwords, an authority, certificates.
# Existing files are kept, so it can be run again; certificates that expire within 30 days are renewed.
#
#   deploy/compose/prepare.sh [FOLDER]      FOLDER defaults to deploy/compose/secrets
set -eu

here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$here/secrets}
month=2592000

command -v openssl >/dev/null || { echo "error: openssl is missing; install it" >&2; exit 1; }

# The folder is not accessible to other users of this machine. The files in it are readable by all, because containers see them with
# the permissions that they have here, and run as a user that does not exist on this machine.
umask 022
mkdir -p "$folder"
chmod 0700 "$folder"
cd "$folder"

password() {
    [ -s "$1" ] || openssl rand -hex 32 >"$1"
}

# Writes standard input to a file that does not exist yet.
once() {
    if [ -s "$1" ]; then cat >/dev/null; else cat >"$1"; fi
}

# certificate NAME SUBJECT-ALTERNATIVE-NAMES: for use as a server and as a client, with these names.
certificate() {
    if [ -s "$1.pem" ] && openssl x509 -in "$1.pem" -noout -checkend "$month" >/dev/null; then
        return
    fi
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -keyout "$1.key" -subj "/CN=$1" -out "$1.csr" 2>/dev/null
    chmod 0644 "$1.key"
    cat >"$1.ext" <<END
subjectAltName = $2
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
basicConstraints = critical, CA:FALSE
END
    openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey authority.key -CAcreateserial -days 365 -sha256 \
        -extfile "$1.ext" -out "$1.pem.new" 2>/dev/null
    mv "$1.pem.new" "$1.pem"
    rm "$1.csr" "$1.ext"
}

password postgres_password
password redis_password
password grafana_password
# The databases are on a network that is private to the compose file.
printf 'postgres://witan:%s@postgres:5432/witan?sslmode=disable\n' "$(cat postgres_password)" | once database_url
printf 'redis://:%s@redis:6379\n' "$(cat redis_password)" | once redis_url

if ! [ -s ca.pem ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -keyout authority.key -days 3650 \
        -subj "/CN=Witan compose authority" -addext "keyUsage = critical, keyCertSign, cRLSign" \
        -addext "basicConstraints = critical, CA:TRUE, pathlen:0" -out ca.pem 2>/dev/null
    # No container gets this one.
    chmod 0600 authority.key
fi
certificate coordinator "DNS:coordinator-1, DNS:coordinator-2, DNS:localhost, IP:127.0.0.1"
for node in node-1 node-2 node-3; do
    certificate "$node" "DNS:$node, DNS:localhost, IP:127.0.0.1"
done

# Compose requires every file that it names to exist; start.sh fills these two.
touch operator_token metrics_token

echo "secrets are in $folder"
