#!/usr/bin/env bash
# The traffic of a node, as markdown tables: per day while nothing is written, per row while rows
# are, and the attempts to reach a broker that is away. It counts the bytes of its TCP
# connections at a proxy, without the heads of packets (some 60 bytes for each).
#   scripts/traffic.sh [--minutes 20] [--seconds-a-row 0.05]      --minutes 0: only per row
# scripts/build.sh says what is built; HARMONYLITE_DAEMON names a program in place of that.
set -euo pipefail
cd "$(dirname "$0")/.."

minutes=20 pace=0.05
while [ $# -gt 0 ]; do
  case $1 in
    --minutes) minutes=${2:?--minutes needs a number} ;;
    --seconds-a-row) pace=${2:?--seconds-a-row needs a number} ;;
    *) echo "usage: $0 [--minutes NUMBER] [--seconds-a-row NUMBER]" >&2 && exit 2 ;;
  esac
  shift 2
done
# shellcheck source=scripts/measured.sh
. scripts/measured.sh
exec python3 -B scripts/traffic.py "$daemon" "$server" "$minutes" "$pace"
