#!/usr/bin/env bash
# Many nodes on this machine around one nats-server: how long until a write is everywhere, how long
# a node takes to join, and what a node costs, as a markdown table.
#   scripts/fleet.sh [--nodes 2,10,25,50] [--writes 200]
# scripts/build.sh says what is built; HARMONYLITE_DAEMON names a program in place of that. A
# node takes some 15 MB, two connections and an inotify instance, of which Linux often gives a user
# 128 (fs.inotify.max_user_instances): nodes beyond that would poll their databases four times a
# second. The measuring itself reads every database each millisecond, on the same processors.
set -euo pipefail
cd "$(dirname "$0")/.."

nodes=2,10,25,50 writes=200
while [ $# -gt 0 ]; do
  case $1 in
    --nodes) nodes=${2:?--nodes needs a list} ;;
    --writes) writes=${2:?--writes needs a number} ;;
    *) echo "usage: $0 [--nodes LIST] [--writes NUMBER]" >&2 && exit 2 ;;
  esac
  shift 2
done
# shellcheck source=scripts/measured.sh
. scripts/measured.sh

echo "| nodes | everywhere p50 ms | p99 ms | join p50 s | longest s |" \
    "CPU ms a write and node | RSS MB a node |"
echo "|---|---|---|---|---|---|---|"
IFS=, read -ra counts <<<"$nodes"
ulimit -n "$(ulimit -Hn)" # the server has two connections for each node, and we have its database
instances=$(cat /proc/sys/fs/inotify/max_user_instances 2>/dev/null || echo 1000000)
for count in "${counts[@]}"; do
  if [ "$count" -ge "$instances" ]; then
    echo "fleet: $count nodes, but a user has $instances inotify instances: as root, do first" \
      "sysctl fs.inotify.max_user_instances=$((count + 100))" >&2
    exit 1
  fi
done
for count in "${counts[@]}"; do
  python3 -B scripts/fleet.py "$daemon" "$server" "$count" "$writes"
done
