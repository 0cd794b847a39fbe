#!/usr/bin/env bash
# The binaries of scripts/build-static.sh for ARMv6, under qemu as an ARM1176 (Raspberry Pi 1 and
# Zero): an instruction of a newer processor ends them. Nodes on ARM and on this machine share rows.
#   scripts/arm.sh [TEST...]     by default those below; names of tests in tests/it
# It builds the minimal binary unless it is there, and tests the one with all stores where that is
# built. scripts/test.sh does not call it: a build takes too long. An emulated node is ten times as
# slow, so few tests run at a time.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/install.sh
. scripts/install.sh

target=arm-unknown-linux-musleabihf
tests=("$@")
[[ $# -gt 0 ]] || tests=(clock:: login::tls_with replicate::two_nodes_one replicate::a_large)
need qemu-arm qemu-user
need faketime faketime

cpu=(qemu-arm -cpu arm1176)
export HARMONYLITE_NATS_SERVER=${HARMONYLITE_NATS_SERVER:-$(scripts/nats-server.sh)}
export HARMONYLITE_REQUIRE_FAKETIME=1

# starts_at_any_time BINARY: with a clock past the end of 32 bits, and one that was never set.
starts_at_any_time() {
    local binary=$1 time text
    for time in "2040-01-01 00:00:00" "1970-01-01 00:00:10"; do
        text=$(DONT_FAKE_MONOTONIC=1 faketime -f "@$time" "${cpu[@]}" "$binary" -version)
        [[ $text == harmonylite\ * ]]
    done
}

binary=target/static/$target/harmonylite
[[ -x $binary-minimal ]] || scripts/build-static.sh --minimal "$target"
for binary in "$binary-minimal" "$binary"; do
    [[ -x $binary ]] || continue
    echo "== $binary, $(stat -c %s "$binary") bytes"
    starts_at_any_time "$binary"
    HARMONYLITE_EMULATED="${cpu[*]} $PWD/$binary" \
        cargo test --test it -- --test-threads 2 "${tests[@]}"
done
