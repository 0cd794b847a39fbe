#!/usr/bin/env bash
# First HarmonyLite is installed on a large table while an application writes, which must never see
# SQLITE_BUSY. Then three nodes write at full speed with conflicts, daemons limited to 64 MB: memory
# and files must be flat at the end, all equal, nothing lost. Beside the written tables there are
# 200 others; at the end a transaction of a million rows.
#   scripts/soak.sh [--minutes T] [--seed N] [--rows N] [--big]
# The default is an hour; a NATS store that grows is known as such after ten minutes. --rows: of the
# large transaction. --big: the large table has 10 million rows instead of 300,000.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/torture.sh
. scripts/torture.sh

limit=$folder/limit.sh
groups=/sys/fs/cgroup/harmonylite-soak.$$
groups_v1=/sys/fs/cgroup/memory/harmonylite-soak.$$
clean_up() {
    for _ in {1..20}; do
        rmdir {"$groups","$groups_v1"}{/*/,} 2>/dev/null || true
        if [[ ! -d $groups && ! -d $groups_v1 ]]; then break; fi
        sleep 0.1 # until the last inside is gone
    done
}
if grep -qw memory /sys/fs/cgroup/cgroup.subtree_control 2>/dev/null &&
    mkdir "$groups" 2>/dev/null &&
    echo +memory >"$groups/cgroup.subtree_control"; then
    echo "memory: 64 MB by cgroup"
    cat >"$limit" <<END
#!/bin/sh
mkdir "$groups/\$\$" && echo 64M >"$groups/\$\$/memory.max" &&
    echo 0 >"$groups/\$\$/memory.swap.max"
echo \$\$ >"$groups/\$\$/cgroup.procs" && exec "\$@"
END
elif [[ -w /sys/fs/cgroup/memory/cgroup.procs ]]; then
    mkdir "$groups_v1"
    echo "memory: 64 MB by cgroup v1"
    cat >"$limit" <<END
#!/bin/sh
mkdir "$groups_v1/\$\$" && echo 67108864 >"$groups_v1/\$\$/memory.limit_in_bytes"
echo \$\$ >"$groups_v1/\$\$/cgroup.procs" && exec "\$@"
END
else
    # Private memory, resident or not: stricter than a limit on what is resident.
    echo "memory: 64 MB by RLIMIT_DATA, because there is no cgroup v2 with a memory controller here"
    printf '#!/bin/sh\nexec prlimit --data=67108864 "$@"\n' >"$limit"
fi
chmod +x "$limit"
"$torture" soak --folder "$folder/nodes" --limit "$limit" "$@"
