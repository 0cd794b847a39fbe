#!/usr/bin/env bash
# Two machines on a wire, as network namespaces: "a" (10.77.0.1) and "b" (10.77.0.2), no way out.
#   scripts/netlab.sh COMMAND...    runs the command on a, in namespaces of its own; root or not
# Inside of that, the wire is changed by
#   scripts/netlab.sh :on_b COMMAND... | :cut | :deaf | :loss PERCENT | :reset PORT | :slow KBIT
#   scripts/netlab.sh :heal
# :cut stops both directions; after :deaf b still sends, and its packets arrive.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
# shellcheck disable=SC2317
on_b() { nsenter -n -t "$NETLAB_B" "$@"; }

on_a() { "$@"; }

# Adds a rule for packets that arrive at b.
rule() { on_b nft add rule inet netlab in "$@"; }

fast() {
    tc qdisc del dev va root 2>/dev/null || true
    on_b tc qdisc del dev vb root 2>/dev/null || true
}

case ${1-} in
:on_b) shift && exec nsenter -n -t "$NETLAB_B" "$@" ;;
:cut) rule iifname vb drop && nft add rule inet netlab in iifname va drop ;;
:deaf) rule iifname vb drop ;;
:heal)
    for side in on_a on_b; do $side nft flush chain inet netlab in; done
    fast
    ;;
:loss) rule iifname vb numgen random mod 100 '<' "$2" drop ;;
:reset)
    # Both directions, so that an end that only listens learns of it, too.
    rule tcp sport "$2" reject with tcp reset
    ;;
:slow)
    tc qdisc replace dev va root tbf rate "$2kbit" burst 16k latency 2s
    on_b tc qdisc replace dev vb root tbf rate "$2kbit" burst 16k latency 2s
    ;;
*)
    if [[ -z ${NETLAB-} ]]; then
        export NETLAB=1
        user=()
        if [[ $(id -u) != 0 ]]; then user=(-r); fi
        exec unshare "${user[@]}" -nmp --fork --kill-child --mount-proc --propagation private \
            "$0" "$@"
    fi
    mount -t tmpfs none /run
    unshare -n sleep infinity &
    export NETLAB_B=$!
    trap 'kill "$NETLAB_B" 2>/dev/null || true' EXIT
    for _ in {1..100}; do
        [[ $(readlink "/proc/$NETLAB_B/ns/net") != $(readlink /proc/self/ns/net) ]] && break
        sleep 0.02
    done
    ip link set lo up
    ip link add va type veth peer name vb netns "$NETLAB_B"
    ip addr add 10.77.0.1/24 dev va
    ip link set va up
    on_b ip addr add 10.77.0.2/24 dev vb
    on_b ip link set vb up
    on_b ip link set lo up
    for side in on_a on_b; do
        $side nft add table inet netlab
        $side nft add chain inet netlab in '{ type filter hook input priority 0; }'
    done
    "$@"
    ;;
esac
