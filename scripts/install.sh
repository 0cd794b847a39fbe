# Sourced by the scripts that get what they need from the distribution, as root or with sudo.
# shellcheck shell=bash

# need COMMAND PACKAGE...: installs the packages if there is no such command.
need() {
    want "$@"
    install_wanted
}

wanted=()

# want COMMAND PACKAGE...: the packages are for install_wanted if there is no such command.
want() {
    command -v "$1" >/dev/null || wanted+=("${@:2}")
}

# Installs what is wanted at once: each call of apt-get reads all of the distribution's lists.
install_wanted() {
    local packages=("${wanted[@]}")
    wanted=()
    [[ ${#packages[@]} = 0 ]] || install_packages "${packages[@]}"
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
