#!/usr/bin/env bash
# A test bed on one machine: three fronts on ports 8080 to 8082 that know each other, each with a worker of its own.
# Ctrl-C ends all of them. Usage: etc/cluster.sh [folder for keys, databases and logs; default run/cluster]
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
bin=${BIN:-$here/.venv/bin}
folder=${1:-$here/run/cluster}
export STUN_SERVERS=${STUN_SERVERS-}

mkdir -p "$folder"
for key in cluster worker; do
    [ -s "$folder/$key.key" ] ||
        (umask 077; "$bin/python" -c 'import secrets; print(secrets.token_hex(32))' >"$folder/$key.key")
done

started=()
finish() {
    trap - EXIT INT TERM
    echo "stopping"
    kill "${started[@]}" 2>/dev/null || true
    wait
}
trap finish EXIT INT TERM

for number in 1 2 3; do
    peers=()
    for other in 1 2 3; do
        [ "$other" = "$number" ] || peers+=(--peer "signaling-$other=tcp:127.0.0.1:$((9090 + other - 1))")
    done
    "$bin/twistd" -n --pidfile= --logfile="$folder/signaling-$number.log" kollator-front \
        --node-id "signaling-$number" --host 127.0.0.1 --port $((8080 + number - 1)) \
        --peer-listen "tcp:$((9090 + number - 1)):interface=127.0.0.1" "${peers[@]}" \
        --database "$folder/signaling-$number.db" \
        --cluster-key-file "$folder/cluster.key" --worker-key-file "$folder/worker.key" &
    started+=($!)
    "$bin/twistd" -n --pidfile= --logfile="$folder/w$number.log" kollator-worker \
        --front "ws://127.0.0.1:$((8080 + number - 1))/signaling" --id "w$number" --key-file "$folder/worker.key" &
    started+=($!)
    echo "signaling-$number: http://127.0.0.1:$((8080 + number - 1))/  status: /status  log: $folder/signaling-$number.log"
done
# The first that ends ends all.
wait -n
