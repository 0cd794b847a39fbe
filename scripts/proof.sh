#!/usr/bin/env bash
# The short form of what breaks things, about eight minutes: kill -9, power cuts, partitions, disk
# trouble, full speed in little memory. Each has a script of its own that runs for any time.
#   scripts/proof.sh [--seed N]
# What cannot run here (no root, no namespaces, no strace) is skipped and named at the end; it exits
# with 77 then.
set -euo pipefail
cd "$(dirname "$0")/.."

skipped=()
run() {
    printf '\n== %s\n' "$*"
    local began=$SECONDS status=0
    "$@" || status=$?
    echo "== $((SECONDS - began)) s"
    case $status in
    0) ;;
    77) skipped+=("$1") ;;
    *) exit "$status" ;;
    esac
}

run scripts/crash.sh --minutes 1.4 "$@"
run scripts/crash.sh --minutes 0.4 --embedded "$@"
run scripts/power-cut.sh --rounds 3 "$@"
run scripts/partition.sh --minutes 0.4 "$@"
run scripts/disk-trouble.sh "$@"
run scripts/disk-trouble.sh --embedded --no-strace "$@"
run scripts/soak.sh --minutes 2 "$@"

if [[ ${#skipped[@]} -gt 0 ]]; then
    printf '\n== proof: all that ran held; SKIPPED: %s\n' "${skipped[*]}"
    exit 77
fi
printf '\n== proof: all held\n'
