#!/bin/sh
# The simulation. Without arguments: 1000 seeds.
#   scripts/sim.sh [--seed N] [--first N] [--seeds M] [--minutes T] [--mutations] [--traces]
# --seed N runs that seed alone and shows its last steps; --first N is where counting begins (a
# fresh place each time with --minutes); --mutations makes mistakes on purpose, each of which must
# be found; --traces records what the fixed seeds do in tests/golden/traces.txt, after a change of
# behaviour that is meant (a test compares). In the environment: SIM_BITS, only seeds with these
# bits (tests/sim/runs.rs names some); SIM_JOBS, how many at a time; SIM_MISTAKES, names of mistakes
# with commas between; with --seed also SIM_WATCH=TABLE:KEY, a row that is shown after each step
# (1:i4, row 4 of the second table).
set -eu
cd "$(dirname "$0")/.."
test=seeds features=
while [ $# -gt 0 ]; do
    case $1 in
        --seed) export SIM_SEED="$2"; shift ;;
        --first) export SIM_FIRST="$2"; shift ;;
        --seeds) export SIM_SEEDS="$2"; shift ;;
        --minutes)
            export SIM_MINUTES="$2" SIM_FIRST="${SIM_FIRST:-$(date +%s)000000}"
            shift ;;
        --mutations) test=every_mistake_is_found features="--features mutations" ;;
        --traces) test=fixed_seeds; export SIM_TRACES=1 ;;
        *) sed -n 2,10p "$0" >&2; exit 2 ;;
    esac
    shift
done
[ -n "${SIM_SEED:-}${SIM_MINUTES:-}" ] || export SIM_SEEDS="${SIM_SEEDS:-1000}"
module=$([ "$test" = every_mistake_is_found ] && echo mutations || echo runs)
# shellcheck disable=SC2086 # no word or several
exec cargo test --quiet --test sim $features "$test" -- --nocapture --exact "$module::$test"
