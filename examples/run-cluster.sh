#!/usr/bin/env bash
# Three HarmonyLite nodes on this machine, each with its own database and its own nats-server.
#
#   examples/run-cluster.sh          shows a write on each node arrive on the others, then runs on
#                                    for you to play with, until Ctrl-C
#   examples/run-cluster.sh --once   ends after that, with 0 only if all databases hold the same
#
# Needs Rust. Gets a nats-server if there is none; needs no root for it.
set -euo pipefail

case ${1-} in
  '') once= ;;
  --once) once=yes ;;
  *) echo "usage: $0 [--once]" >&2 && exit 2 ;;
esac
cd "$(dirname "$0")/.."

folder=

say() { printf '%s\n' "$*"; }

# Every end comes through here, by the trap: no process and no file stays behind.
# shellcheck disable=SC2317
end() {
  local status=$? pid
  trap '' INT TERM HUP
  trap - EXIT
  for pid in $(jobs -p); do kill -TERM "$pid" 2>/dev/null || true; done
  wait
  if [ -n "$folder" ]; then
    if [ "$status" != 0 ]; then tail -n 5 "$folder"/node-*/log >&2 || true; fi
    rm -rf "$folder"
  fi
  exit "$status"
}
trap end EXIT
trap 'say; say "Stopping."; exit 0' INT TERM HUP

# For the C in SQLite; Rust itself cannot link without it.
# shellcheck source=scripts/install.sh
. scripts/install.sh
need cc gcc libc6-dev
command -v cargo >/dev/null || PATH=$PATH:$HOME/.cargo/bin

say "Building (the first time takes a few minutes) ..."
# Without what takes longest: link-time optimisation, and stores for snapshots that need OpenSSL.
HARMONYLITE_PROFILE=${HARMONYLITE_PROFILE:-proof}
# shellcheck source=scripts/build.sh
. scripts/build.sh
build books
books=$(built books) harmonylite=$(built harmonylite)

# Ports on which nobody answers, below those that the system hands out by itself.
ports=()
while [ "${#ports[@]}" -lt 3 ]; do
  port=$((20000 + RANDOM % 10000))
  case " ${ports[*]} " in *" $port "*) continue ;; esac
  if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then ports+=("$port"); fi
done
peers=nats://127.0.0.1:${ports[0]}/,nats://127.0.0.1:${ports[1]}/,nats://127.0.0.1:${ports[2]}/

folder=$(mktemp -d "${TMPDIR:-/tmp}/harmonylite.XXXXXX")
say "Starting three nodes:"
for n in 1 2 3; do
  node=$folder/node-$n
  mkdir "$node"
  "$books" create "$node/books.db"
  printf '%s\n' "node_id = $n" "db_path = '$node/books.db'" \
    '[nats]' "server_binary = '$HARMONYLITE_NATS_SERVER'" >"$node/config.toml"
  # With a process group of its own (-m), Ctrl-C reaches it through us, once.
  set -m
  "$harmonylite" -config "$node/config.toml" -cluster-addr "127.0.0.1:${ports[n - 1]}" \
    -cluster-peers "$peers" </dev/null >"$node/log" 2>&1 &
  set +m
  say "  $n  $node/books.db"
done

written=0
write() {
  local node=$1 began took
  shift
  "$books" add "$folder/node-$node/books.db" "$@"
  written=$((written + 1))
  say "Node $node writes \"$1\". On all three:"
  began=${EPOCHREALTIME/[.,]/}
  # Behind our back, because a signal must not wait for it.
  "$books" wait "$written" "$folder"/node-{1,2,3}/books.db &
  wait $!
  took=$(((${EPOCHREALTIME/[.,]/} - began) / 1000))
  say "      ($took ms)"
}
say "They find each other; the first write waits for that."
write 1 'Dune' 'Frank Herbert' 1965
write 2 'The Left Hand of Darkness' 'Ursula K. Le Guin' 1969
write 3 'Solaris' 'Stanislaw Lem' 1961
say "All three databases hold the same rows."
[ -z "$once" ] || exit 0

say
say "They run on. Write to any of the files, with your application or with:"
say "  $books add $folder/node-1/books.db Emma 'Jane Austen' 1815"
say "Ctrl-C ends all of it."
# None of them ends by itself.
wait -n || true
say "A node ended." >&2
exit 1
