#!/usr/bin/env bash
# Applications for real, each on two nodes or more, without a line of configuration for it.
#
#   scripts/apps.sh              those that CI runs
#   scripts/apps.sh NAME...      others, too: every tests/apps/NAME.py
#
# One line of result each. What an application needs comes from PyPI, as tests/apps/NAME.txt says
# (none: nothing), and stays in target/apps/. One that cannot be had is skipped, with a word, unless
# HARMONYLITE_REQUIRE_APPS is set. HARMONYLITE_BIN: another program than that of `cargo build`.
set -euo pipefail

cd "$(dirname "$0")/.."
names=("$@")
[ $# -gt 0 ] || names=(django alembic litestream)
store=$PWD/target/apps

if [ -z "${HARMONYLITE_BIN-}" ]; then
  cargo build --quiet
  HARMONYLITE_BIN=$PWD/target/debug/harmonylite
fi
HARMONYLITE_NATS_SERVER=${HARMONYLITE_NATS_SERVER:-$(scripts/nats-server.sh)}
export HARMONYLITE_BIN HARMONYLITE_NATS_SERVER

# fetch NAME: what it needs into $store/NAME.
fetch() {
  local into=$store/$1 list=tests/apps/$1.txt
  [ -f "$list" ] || return 0
  cmp -s "$list" "$into/list.txt" && return
  rm -rf "$into" && mkdir -p "$store"
  python3 -m pip install --quiet --disable-pip-version-check --no-compile --target "$into" \
    --requirement "$list" >"$store/$1.log" 2>&1 && cp "$list" "$into/list.txt"
}

failed=0
for name in "${names[@]}"; do
  if [ ! -f "tests/apps/$name.py" ]; then
    echo "$name: there is no tests/apps/$name.py" >&2
    exit 2
  fi
  if ! fetch "$name"; then
    tail -n 3 "$store/$name.log" >&2 || true
    if [ -n "${HARMONYLITE_REQUIRE_APPS-}" ]; then
      echo "$name: FAILED: it could not be had from PyPI" && failed=1
    else
      echo "$name: SKIPPED: it could not be had from PyPI"
    fi
    continue
  fi
  began=$SECONDS
  if said=$(PYTHONPATH=$store/$name PYTHONDONTWRITEBYTECODE=1 APP_STORE=$store/$name \
    python3 "tests/apps/$name.py"); then
    echo "$name: ok, $said ($((SECONDS - began)) s)"
  else
    echo "$name: FAILED: $said" && failed=1
  fi
done
exit "$failed"
