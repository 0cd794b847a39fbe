#!/usr/bin/env bash
# The scripts that break things, in a short form of about seven minutes: kill -9, power cuts,
# partitions, disk trouble, full speed in little memory. Each of them alone runs for any time.
#   scripts/proof.sh [--no-soak] [--seed N]
# --no-soak leaves the last out. Kills run beside the other faults, which wait most of the time.
# A script that cannot run here (no root, no namespaces, no strace) is skipped and named at the end;
# the exit code is 77 then.
set -euo pipefail
cd "$(dirname "$0")/.."

soak=yes
if [[ ${1-} == --no-soak ]]; then soak='' && shift; fi

# Built once, before two build at the same time.
# shellcheck source=scripts/build.sh
. scripts/build.sh
build torture
export HARMONYLITE_TORTURE_BUILT=1

results=$(mktemp -d "${TMPDIR:-/tmp}/harmonylite-proof.XXXXXX")
trap 'rm -rf "$results"' EXIT
touch "$results/skipped"

run() {
    printf '\n== %s\n' "$*"
    local began=$SECONDS status=0
    "$@" || status=$?
    echo "== $((SECONDS - began)) s"
    case $status in
    0) ;;
    77) echo "$1" >>"$results/skipped" ;;
    *) exit "$status" ;;
    esac
}

kills() {
    run scripts/crash.sh --minutes 1.4 "$@"
    run scripts/crash.sh --minutes 0.4 --embedded "$@"
}

faults() {
    run scripts/power-cut.sh --rounds 3 "$@"
    run scripts/partition.sh --minutes 0.4 "$@"
    run scripts/disk-trouble.sh "$@"
    run scripts/disk-trouble.sh --embedded --no-strace "$@"
}

(kills "$@") >"$results/kills" 2>&1 &
faulted=0 killed=0
(faults "$@") || faulted=$?
wait "$!" || killed=$?
cat "$results/kills"
[[ $faulted == 0 ]] || exit "$faulted"
[[ $killed == 0 ]] || exit "$killed"
if [[ -n $soak ]]; then run scripts/soak.sh --minutes 2 "$@"; fi

mapfile -t skipped <"$results/skipped"
if [[ ${#skipped[@]} -gt 0 ]]; then
    printf '\n== proof: all that ran held; SKIPPED: %s\n' "${skipped[*]}"
    exit 77
fi
printf '\n== proof: all held\n'
