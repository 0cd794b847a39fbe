# Sourced by the scripts that run a program of examples/: a nats-server and a build.
# HARMONYLITE_NATS_SERVER: that one; else the one in PATH, or what scripts/nats-server.sh gets.
# HARMONYLITE_PROFILE: how to build, release if it is not set. "proof" is the same without link-time
# optimisation and without the stores that need a TLS library; "dev" is what the tests built anyway.
# shellcheck shell=bash

if [[ -z ${HARMONYLITE_NATS_SERVER:-} ]]; then
    HARMONYLITE_NATS_SERVER=$(scripts/nats-server.sh)
    export HARMONYLITE_NATS_SERVER
fi

profile=${HARMONYLITE_PROFILE:-release}

# build EXAMPLE: that and the daemon.
build() {
    local features=()
    if [[ $profile == proof ]]; then
        features=(--no-default-features --features "store-file store-nats")
    fi
    cargo build --profile "$profile" "${features[@]}" --quiet --bin harmonylite --example "$1"
}

# built PROGRAM: the path of the example, or of harmonylite.
built() {
    local folder=${CARGO_TARGET_DIR:-$PWD/target}/${profile/#dev/debug}
    if [[ $1 != harmonylite ]]; then folder+=/examples; fi
    case $folder in /*) ;; *) folder=$PWD/$folder ;; esac
    echo "$folder/$1"
}
