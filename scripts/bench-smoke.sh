#!/usr/bin/env bash
# Compares the balancer with nginx on this machine, in the same run, with the same backends.
#
#   scripts/bench-smoke.sh [--rounds N] [--seconds N]
#
# Prints requests per second and latency of `wrk -c64` against a backend directly, through nginx and
# through the balancer (rounds interleaved, medians), and the balancer's resident memory with 1,000
# open event streams. A smoke test, not a benchmark: client, proxy and backends share the cores, so
# only the comparison means something. The real figures need machines of their own.
#
# Needs a release build, wrk, nginx and Python 3 (Debian: wrk nginx-light python3; as root it
# installs the first two). Ports are free ones on a loopback address of its own. Takes about two
# minutes; everything that it starts is ended by pid.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH="$PATH:/usr/sbin"

missing=()
command -v wrk >/dev/null || missing+=(wrk)
command -v nginx >/dev/null || missing+=(nginx-light)
if ((${#missing[@]} > 0)); then
    if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -qq --no-install-recommends "${missing[@]}"
    else
        echo "needs ${missing[*]} (Debian: sudo apt-get install ${missing[*]})" >&2
        exit 1
    fi
fi
binary=${STEPFLOW_LB_BIN:-${CARGO_TARGET_DIR:-target}/release/stepflow-load-balancer}
if [[ ! -x $binary ]]; then
    echo "needs $binary: cargo build --release, or set STEPFLOW_LB_BIN" >&2
    exit 1
fi
STEPFLOW_LB_BIN=$(realpath "$binary") exec python3 scripts/bench_smoke.py "$@"
