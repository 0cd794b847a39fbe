#!/usr/bin/env bash
# An ext4 disk that loses unflushed writes, as in a power cut. Needs root.
#   scripts/loop-disk.sh new DIR [MiB]   makes it, mounted on DIR/mnt
#   scripts/loop-disk.sh cut DIR         the power goes: nothing more reaches the disk
#   scripts/loop-disk.sh back DIR        mounts it again (end the writers first)
#   scripts/loop-disk.sh drop DIR        unmounts and removes it
set -euo pipefail

dir=$2
mounted() { mount -o loop "$dir/image" "$dir/mnt"; }

case $1 in
new)
    mkdir -p "$dir/mnt"
    truncate -s "${3:-256}M" "$dir/image"
    mkfs.ext4 -q -F -E lazy_itable_init=1 "$dir/image"
    mounted
    ;;
cut)
    # EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH
    python3 -c 'import fcntl, os, struct, sys
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587D, struct.pack("I", 2))' "$dir/mnt"
    ;;
back)
    # Where only mounting failed, it is tried again.
    if mountpoint -q "$dir/mnt"; then umount "$dir/mnt"; fi
    mounted
    ;;
drop)
    umount "$dir/mnt" 2>/dev/null || umount -l "$dir/mnt" 2>/dev/null || true
    rm -rf "$dir"
    ;;
*) exit 2 ;;
esac
