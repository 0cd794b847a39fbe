#!/usr/bin/env bash
# Applications for real, each on two nodes or more, without a line of configuration for it.
#
#   scripts/apps.sh              those that CI runs
#   scripts/apps.sh NAME...      others, too: every tests/apps/NAME.py
#   scripts/apps.sh all          all of them
#   scripts/apps.sh --fetch ...  gets what they need, and runs none
#
# One line of result each. The packages of an application come from PyPI (tests/apps/NAME.txt) and
# the npm registry (NAME.npm, or NAME.json as a package.json), and stay in target/apps/; Debian's
# packages (NAME.apt) are installed if this runs as root. An application that cannot be fetched is
# skipped with a message, unless HARMONYLITE_REQUIRE_APPS is set. HARMONYLITE_BIN names a program in
# place of that of `cargo build`.
set -euo pipefail

cd "$(dirname "$0")/.."
only_fetch=
if [ "${1-}" = --fetch ]; then only_fetch=yes && shift; fi
names=("$@")
[ $# -gt 0 ] || names=(django alembic litestream)
if [ "${names[*]}" = all ]; then
  mapfile -t names < <(basename -s .py tests/apps/*.py | grep -vx harness)
fi
store=$PWD/target/apps

if [ -z "$only_fetch" ]; then
  if [ -z "${HARMONYLITE_BIN-}" ]; then
    cargo build --quiet
    HARMONYLITE_BIN=$PWD/target/debug/harmonylite
  fi
  HARMONYLITE_NATS_SERVER=${HARMONYLITE_NATS_SERVER:-$(scripts/nats-server.sh)}
  export HARMONYLITE_BIN HARMONYLITE_NATS_SERVER
fi

# Native parts of npm packages are built with the headers that came with node, where it has them.
node_home=$(dirname "$(dirname "$(readlink -f "$(command -v node || echo /)")")")
[ ! -d "$node_home/include/node" ] || export npm_config_nodedir=$node_home

# install KIND LIST INTO: what a list names, one package a line.
install() {
  local packages
  mapfile -t packages <"$2"
  case $1 in
    txt) python3 -m pip install --quiet --disable-pip-version-check --no-compile --upgrade \
      --target "$3" "${packages[@]}" ;;
    npm) npm install --silent --no-audit --no-fund --no-package-lock --prefix "$3" \
      "${packages[@]}" ;;
    json) cp "$2" "$3/package.json" &&
      npm install --silent --no-audit --no-fund --no-package-lock --prefix "$3" ;;
    apt) dpkg --status "${packages[@]}" >/dev/null 2>&1 || {
      apt-get update --quiet=2 &&
        apt-get install --quiet=2 --yes --no-install-recommends "${packages[@]}"
    } ;;
  esac
}

# fetch NAME: what it needs. Sets place to where that is; a list that is a link is shared.
fetch() {
  local kind list
  for kind in apt txt npm json; do
    list=tests/apps/$1.$kind
    [ -f "$list" ] || continue
    place=$store/$(basename "$(readlink -f "$list")")
    cmp -s "$list" "$place/list" && continue
    mkdir -p "$place"
    install "$kind" "$list" "$place" >"$store/$1.log" 2>&1 || return
    cp "$list" "$place/list"
  done
}

failed=0
for name in "${names[@]}"; do
  if [ ! -f "tests/apps/$name.py" ]; then
    echo "$name: there is no tests/apps/$name.py" >&2
    exit 2
  fi
  place=$store
  if ! fetch "$name"; then
    tail -n 3 "$store/$name.log" >&2 || true
    if [ -n "${HARMONYLITE_REQUIRE_APPS-}" ]; then
      echo "$name: FAILED: it could not be had from its registry" && failed=1
    else
      echo "$name: SKIPPED: it could not be had from its registry"
    fi
    continue
  fi
  [ -z "$only_fetch" ] || continue
  began=$SECONDS
  if said=$(PYTHONPATH=$place PYTHONDONTWRITEBYTECODE=1 APP_STORE=$place \
    python3 "tests/apps/$name.py"); then
    echo "$name: ok, $said ($((SECONDS - began)) s)"
  else
    echo "$name: FAILED: $said" && failed=1
  fi
done
exit "$failed"
