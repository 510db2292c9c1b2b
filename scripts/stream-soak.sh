#!/usr/bin/env bash
# Many event streams for a long time, every event checked, and a deploy under them.
#
#   scripts/stream-soak.sh [--streams N] [--minutes N | --seconds N] [--seed N]
#
# Runs tests/streams_load with 5,000 clients for five minutes (well-behaved, slow, stalled and
# leaving ones on GET and POST), with 1,000 stalled clients beside others on one worker, and a
# deploy of three backends and the balancer under 1,000 clients like a browser's EventSource, none
# of which may wait more than a second longer than it was told. Prints what was read, how fast
# departures reached backends, memory, and its seed; with --seed the same streams are drawn again,
# though the machine decides their timing. `cargo test` runs the same with less in seconds.
#
# Takes a release build of its own, or STEPFLOW_LB_BIN. Needs nothing but the Rust toolchain and a
# hard limit of two descriptors for each stream. Takes seven minutes and most of two cores.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
    echo "usage: scripts/stream-soak.sh [--streams N] [--minutes N | --seconds N] [--seed N]" >&2
    exit 2
}
export STREAMS_LOAD_STREAMS=5000 STREAMS_LOAD_SECONDS=300
while (($# > 0)); do
    [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || usage
    case "$1" in
        --streams) STREAMS_LOAD_STREAMS=$2 ;;
        --minutes) STREAMS_LOAD_SECONDS=$(($2 * 60)) ;;
        --seconds) STREAMS_LOAD_SECONDS=$2 ;;
        --seed) export STREAMS_LOAD_SEED=$2 ;;
        *) usage ;;
    esac
    shift 2
done
export STREAMS_LOAD_STALLED=$((STREAMS_LOAD_STREAMS < 1000 ? STREAMS_LOAD_STREAMS : 1000))
export STREAMS_LOAD_CLIENTS=$STREAMS_LOAD_STALLED STREAMS_LOAD_SLACK_MS=1000

exec cargo test --locked --release --test streams_load -- --nocapture --test-threads 1
