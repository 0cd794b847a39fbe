#!/usr/bin/env bash
# Power cuts: one node's database and NATS store lie on a disk that loses unflushed writes; the
# other node keeps its power. After each cut all must be equal again, nothing may be lost that was
# committed with synchronous=FULL or that the other node had read.
#   scripts/power-cut.sh [--rounds N] [--seed N]
# Needs root, loop devices and mount namespaces: exits with 77 without.
set -euo pipefail
cd "$(dirname "$0")/.."

skip() {
    echo "SKIPPED: power cuts are not tested here: $*" >&2
    exit 77
}
[[ $(id -u) == 0 ]] || skip "not root"
for tool in losetup mkfs.ext4 python3 unshare; do
    command -v "$tool" >/dev/null || skip "no $tool"
done
unshare -m true 2>/dev/null || skip "no mount namespaces"
# A container may see loop devices that are not there.
probe=$(mktemp)
truncate -s 1M "$probe"
loop=$(losetup -f --show "$probe" 2>/dev/null) || loop=
rm "$probe"
[[ -n $loop ]] || skip "no loop devices"
losetup -d "$loop"

# The mounts are in a namespace of ours and go with it.
if [[ -z ${HARMONYLITE_TORTURE_MOUNTS-} ]]; then
    HARMONYLITE_TORTURE_MOUNTS=1 exec unshare -m --propagation private "$0" "$@"
fi
# shellcheck source=scripts/torture.sh
. scripts/torture.sh
clean_up() {
    # The files of a failure are saved. After a cut nothing can be read before the disk is back.
    if [[ $1 != 0 ]]; then
        sleep 1 # until whoever wrote is gone
        if scripts/loop-disk.sh back "$folder/disk"; then
            cp -a "$folder/disk/mnt" "$folder/saved-disk" || true
        else
            cp --sparse=always "$folder/disk/image" "$folder/saved-image" || true
        fi
    fi
    scripts/loop-disk.sh drop "$folder/disk"
}
scripts/loop-disk.sh new "$folder/disk" 512
# The machine also starts anew, by the sign that the daemon knows.
export HARMONYLITE_TORTURE_BOOT_ID=$folder/boot-id
cat /proc/sys/kernel/random/boot_id >"$HARMONYLITE_TORTURE_BOOT_ID"
mount --bind "$HARMONYLITE_TORTURE_BOOT_ID" /proc/sys/kernel/random/boot_id
"$torture" power --folder "$folder/nodes" --disk "$folder/disk" "$@"
