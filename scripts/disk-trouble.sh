#!/usr/bin/env bash
# A full disk, and system calls that fail with EIO and ENOSPC, under the database of a node: its
# daemon must say so, keep the database sound, and go on by itself when the disk is well again.
#   scripts/disk-trouble.sh [--seed N] [--embedded] [--no-strace]
# --embedded: the nats-server and its store are on the full disk, too.
# Needs a mount namespace (root, or users may make them) and strace: exits with 77 without.
set -euo pipefail
cd "$(dirname "$0")/.."

skip() {
    echo "SKIPPED: disk trouble is not tested here: $*" >&2
    exit 77
}
user=()
if [[ $(id -u) != 0 ]]; then user=(-r); fi
unshare "${user[@]}" -m true 2>/dev/null || skip "no mount namespaces"
command -v strace >/dev/null || skip "no strace"
if ! strace -qq -o /dev/null true 2>/dev/null; then skip "strace may not trace"; fi

# shellcheck source=scripts/torture.sh
. scripts/torture.sh
mkdir "$folder/small"
# shellcheck disable=SC2016
unshare "${user[@]}" -m --propagation private sh -c \
    'mount -t tmpfs -o size=48m none "$1" && small=$1 && shift && exec "$@" --small-disk "$small"' \
    sh "$folder/small" "$torture" disk --folder "$folder/nodes" "$@"
