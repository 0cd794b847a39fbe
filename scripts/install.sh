# Sourced by the scripts that get what they need from the distribution, as root or with sudo.
# shellcheck shell=bash

# need COMMAND PACKAGE...: installs the packages if there is no such command.
need() {
    command -v "$1" >/dev/null || install_packages "${@:2}"
}

install_packages() {
    local root=()
    if [[ $(id -u) != 0 ]]; then root=(sudo -n); fi
    echo "installing $*"
    if ! "${root[@]}" apt-get -qq update </dev/null ||
        ! "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
            apt-get -qq install -y --no-install-recommends "$@" </dev/null >/dev/null; then
        echo "$0: please install: $*" >&2
        return 1
    fi
}
