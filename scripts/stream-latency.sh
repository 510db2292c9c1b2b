#!/usr/bin/env bash
# Measures what a proxy adds to the latency of events: this balancer, nginx and HAProxy in turn.
#
#   scripts/stream-latency.sh [--rounds N] [--seconds N] [--streams N] [--rate N]
#
# 1,000 streams of 10 events a second each, for 10 seconds a round, 5 rounds. Each proxy runs on one
# thread on core 0, the backends and the driver (benches/streams.rs) on core 1; rounds take turns
# and start every proxy anew. Prints a Markdown table of medians: latency of an event from the
# backend's write to the client's read (p50, p99, max), processor time per event, memory per stream.
# The row without a proxy is the floor: what the driver and the kernel need themselves.
#
# Needs two cores with little else to do, nginx and HAProxy (Debian: nginx-light haproxy; as root it
# installs them), Python 3 and taskset. Builds what it needs in release mode, or takes
# STEPFLOW_LB_BIN. Ports are free ones on a loopback address of its own; everything that it starts
# is ended by pid. Takes five minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH="$PATH:/usr/sbin"

source scripts/needs.sh
needs nginx:nginx-light haproxy taskset:util-linux
if [[ -z ${STEPFLOW_LB_BIN:-} ]]; then
    cargo build --release --locked
    STEPFLOW_LB_BIN=$(realpath "${CARGO_TARGET_DIR:-target}")/release/stepflow-load-balancer
    export STEPFLOW_LB_BIN
fi
driver=$(cargo bench --locked --bench streams --no-run --message-format=json |
    sed -n 's/.*"executable":"\([^"]*streams-[^"]*\)".*/\1/p')
exec python3 scripts/stream_latency.py --driver "$driver" "$@"
