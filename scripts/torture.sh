# Sourced by the scripts that break things: builds (see build.sh) and makes a folder that is removed
# unless something failed.
# shellcheck shell=bash disable=SC2034

# shellcheck source=scripts/build.sh
. scripts/build.sh
# Ours may run as another user or in a namespace, where there is no cargo.
if [[ -z ${HARMONYLITE_TORTURE_BUILT:-} ]]; then
    build torture
    export HARMONYLITE_TORTURE_BUILT=1
fi
torture=$(built torture)
folder=$(mktemp -d "${TMPDIR:-/tmp}/harmonylite-torture.XXXXXX")

end() {
    local status=$?
    trap - EXIT
    if declare -F clean_up >/dev/null; then clean_up "$status"; fi
    if [[ $status == 0 || $status == 77 ]]; then rm -rf "$folder"; else echo "kept: $folder" >&2; fi
    exit "$status"
}
trap end EXIT
trap 'exit 130' INT TERM HUP
