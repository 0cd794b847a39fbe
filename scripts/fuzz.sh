#!/bin/sh
# Fuzzes the places where bytes from elsewhere enter, with libFuzzer on nightly Rust.
#   scripts/fuzz.sh [TARGET] [--minutes T]
# TARGET: frame, apply, config, manifest or stored; without it all of them, T minutes each
# (default 3).
# Findings are in tests/fuzz/artifacts; once mended, they go to tests/fuzz/found/TARGET, where
# `cargo test --test hostile` runs them for ever.
set -eu
cd "$(dirname "$0")/.."
minutes=3 targets='frame apply config manifest stored'
while [ $# -gt 0 ]; do
    case $1 in
        --minutes) minutes=$2; shift ;;
        frame | apply | config | manifest | stored) targets=$1 ;;
        *) sed -n 2,6p "$0" >&2; exit 2 ;;
    esac
    shift
done
export PATH="$PATH:$HOME/.cargo/bin"
command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
rustup toolchain list | grep -q ^nightly || rustup toolchain install --profile minimal nightly
FUZZ_CORPUS="$PWD/tests/fuzz/corpus" cargo test --quiet --test hostile seeds_are_distinct
for target in $targets; do
    cargo +nightly fuzz run --fuzz-dir tests/fuzz "$target" -- \
        -max_total_time=$((minutes * 60)) -max_len=65536 -rss_limit_mb=512 -timeout=20 \
        -print_final_stats=1
done
