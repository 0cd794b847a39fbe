#!/usr/bin/env bash
# Measures HarmonyLite beside plain SQLite and plain NATS and prints a table.
#   scripts/bench.sh [--runs N] [--idle SECONDS] [--only throughput,latency,app,wal,idle]
#   scripts/bench.sh --only snapshot [--mb 1000] [--stores file,nats]
#   scripts/bench.sh --only courtesy [--seconds 4]
#   scripts/bench.sh --only flash [--seconds 120] [--publish-interval 60s]
#   scripts/bench.sh --only verify [--rows 1000000]
#   scripts/bench.sh --only sealed [--runs N]
#   scripts/bench.sh --all           every number of the guide's chapter on performance
# "snapshot" has a table of its own: a snapshot of a large database, nodes that join with it, and
# how long an application waits meanwhile. Some ten minutes and 10 GB in target/. "courtesy" has
# some, too: how many transactions that read before they write are refused, beside two daemons and
# without; seven minutes. --all makes these as well, the snapshots in a folder alone; half an hour.
# "sealed" compares the throughput with the cluster key and without, a minute for each of the runs.
# "verify" compares a large table on three nodes while an application writes; --rows 10000000 for
# ten million rows takes some 6 GB in target/. "flash" counts the bytes that reach ext4 disks a row;
# it needs root, some six minutes, and its name.
# scripts/build.sh says what is built and which nats-server runs.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/build.sh
. scripts/build.sh
build bench
"$(built bench)" "$@"
