#!/usr/bin/env bash
# Partitions under writes on both sides: cut, 30 % loss, resets and a slow link, then healed; all
# nodes must end equal with nothing lost, and no daemon may have been started again.
#   scripts/partition.sh [--minutes T] [--seed N]
# Needs network namespaces (root, or users may make them), ip, tc and nft: exits with 77 without.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin

skip() {
    echo "SKIPPED: partitions are not tested here: $*" >&2
    exit 77
}
for tool in unshare nsenter ip tc nft; do
    command -v "$tool" >/dev/null || skip "no $tool"
done
scripts/netlab.sh true || skip "no network namespaces"

# shellcheck source=scripts/torture.sh
. scripts/torture.sh
scripts/netlab.sh "$torture" partition --folder "$folder" "$@"
