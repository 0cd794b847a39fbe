#!/usr/bin/env bash
# kill -9 of daemons, applications and nats-server under load, in a loop; after each round all
# databases must be sound and equal, and nothing that was committed may be lost.
#   scripts/crash.sh [--minutes T] [--seed N] [--nodes N] [--embedded]
# --embedded: the first node runs the nats-server itself.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/torture.sh
. scripts/torture.sh
"$torture" crash --folder "$folder" "$@"
