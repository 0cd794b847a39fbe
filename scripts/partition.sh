#!/usr/bin/env bash
# Partitions under writes on both sides: cut, cut in one direction, 30 % loss, resets and a slow
# link, then healed; all nodes must end equal with nothing lost, and no daemon may have been started
# again.
# From --minutes 12 on each lasts for one to two minutes; the default is a minute, of all together.
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
user=()
if [[ $(id -u) != 0 ]]; then user=(-r); fi
unshare "${user[@]}" -nmp --fork true 2>/dev/null || skip "no network namespaces"
unshare "${user[@]}" -n sh -c 'ip link add va type veth && nft add table inet netlab' 2>/dev/null ||
    skip "no veth or nftables in the kernel"

# shellcheck source=scripts/torture.sh
. scripts/torture.sh
scripts/netlab.sh "$torture" partition --folder "$folder" "$@"
