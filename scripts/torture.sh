# Sourced by the scripts that break things: builds, finds a nats-server, makes a folder that is
# removed unless something failed.
# HARMONYLITE_PROFILE: how to build, release if it is not set. "proof" is the same without link-time
# optimisation and without the stores that need a TLS library; "dev" is what the tests built anyway.
# Uses HARMONYLITE_NATS_SERVER, the nats-server in PATH, or what scripts/nats-server.sh gets.
# shellcheck shell=bash disable=SC2034

if [[ -z ${HARMONYLITE_NATS_SERVER:-} ]]; then
    HARMONYLITE_NATS_SERVER=$(scripts/nats-server.sh)
    export HARMONYLITE_NATS_SERVER
fi
# Ours may run as another user or in a namespace, where there is no cargo.
profile=${HARMONYLITE_PROFILE:-release}
if [[ -z ${HARMONYLITE_TORTURE_BUILT:-} ]]; then
    features=()
    if [[ $profile == proof ]]; then
        features=(--no-default-features --features "store-file store-nats")
    fi
    cargo build --profile "$profile" "${features[@]}" --quiet --bin harmonylite --example torture
    export HARMONYLITE_TORTURE_BUILT=1
fi
torture=${CARGO_TARGET_DIR:-$PWD/target}/${profile/#dev/debug}/examples/torture
folder=$(mktemp -d "${TMPDIR:-/tmp}/harmonylite-torture.XXXXXX")

end() {
    local status=$?
    trap - EXIT
    if declare -F clean_up >/dev/null; then clean_up; fi
    if [[ $status == 0 || $status == 77 ]]; then rm -rf "$folder"; else echo "kept: $folder" >&2; fi
    exit "$status"
}
trap end EXIT
trap 'exit 130' INT TERM HUP
