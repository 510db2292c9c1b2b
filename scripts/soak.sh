#!/usr/bin/env bash
# Soaks the balancer: random faults on all sides, every response checked, nothing left behind.
#
#   scripts/soak.sh [--minutes N | --seconds N] [--seed N] [--log FILE]
#
# Runs tests/soak for 2 minutes of load, or as long as it is told, in phases of at most five; behind
# each the load stops and all must go back: gauges to 0, descriptors to what they were. Prints
# memory and descriptors every ten seconds, what was asked and what came of it, and its seed; with
# --seed the same requests and faults are drawn again, though the machine decides their timing. The
# balancer's log goes to --log FILE.
#
# Takes the release build, or STEPFLOW_LB_BIN. Exits 1 when a response was wrong, something was
# left, memory grew, or the log holds an error. Needs nothing but the Rust toolchain; a run of
# half an hour takes a third of one core.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
    echo "usage: scripts/soak.sh [--minutes N | --seconds N] [--seed N] [--log FILE]" >&2
    exit 2
}
export SOAK_SECONDS=120
while (($# > 0)); do
    [[ -n ${2:-} ]] || usage
    case "$1" in
        --minutes | --seconds | --seed) [[ $2 =~ ^[0-9]+$ ]] || usage ;;&
        --minutes) SOAK_SECONDS=$(($2 * 60)) ;;
        --seconds) SOAK_SECONDS=$2 ;;
        --seed) export SOAK_SEED=$2 ;;
        --log) SOAK_LOG=$(realpath -m "$2") && export SOAK_LOG ;;
        *) usage ;;
    esac
    shift 2
done
((SOAK_SECONDS > 0)) || usage

if [[ -z ${STEPFLOW_LB_BIN:-} ]]; then
    cargo build --release --locked
    STEPFLOW_LB_BIN=$(realpath "${CARGO_TARGET_DIR:-target}")/release/stepflow-load-balancer
    export STEPFLOW_LB_BIN
fi
exec cargo test --locked --test soak -- --nocapture --exact \
    under_random_faults_every_response_is_right_and_nothing_is_left_behind
