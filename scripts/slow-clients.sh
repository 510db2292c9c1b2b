#!/usr/bin/env bash
# Attacks the balancer with slow clients while others go on being served.
#
#   scripts/slow-clients.sh [--connections N] [--seconds N] [MODE...]
#
# Modes: headers (slowloris: heads that do not end), body (bodies that do not end), range (thousands
# of overlapping ranges in each request, which is over when all are answered), read (responses that
# are hardly read). Without any it takes all of them.
# For each it runs slowhttptest with 2,000 connections for 40 seconds, and wrk beside it, and prints
# the rate of wrk without and with the attack, its errors, what became of the attacker's connections
# and why, and the balancer's memory and descriptors before, during and after.
#
# Exits 1 if wrk saw an error or less than a tenth of its rate, or if descriptors or memory do
# not come back. Attacker, wrk, balancer and backends share the cores: the rates are no benchmark.
#
# Needs a release build, slowhttptest, wrk and curl (Debian packages of these names; as root it
# installs them), and a hard limit of at least four descriptors for each connection, to which it
# raises its own. Everything that it starts is on loopback and ended by pid. Takes five minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Most that resident memory may be above what it was, once all is over: the allocator keeps some of
# the pages that thousands of connections have touched.
GROWTH_KIB_MAX=16384
# Longest that connections may take to go once the attacker has gone.
SETTLING_S=90
WRK_S=8

connections=2000
seconds=40
modes=()
usage() {
    echo "usage: scripts/slow-clients.sh [--connections N] [--seconds N]" \
        "[headers|body|range|read]..." >&2
    exit 2
}
while (($# > 0)); do
    case "$1" in
        --connections | --seconds)
            [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || usage
            [[ $1 == --connections ]] && connections=$2 || seconds=$2
            shift
            ;;
        headers | body | range | read) modes+=("$1") ;;
        *) usage ;;
    esac
    shift
done
((${#modes[@]} > 0)) || modes=(headers body range read)
if ((seconds <= WRK_S + 5)); then
    echo "--seconds: more than $((WRK_S + 5)), so that wrk can run beside it" >&2
    exit 2
fi

source scripts/needs.sh
needs slowhttptest wrk curl
binary=${STEPFLOW_LB_BIN:-${CARGO_TARGET_DIR:-target}/release/stepflow-load-balancer}
if [[ ! -x $binary ]]; then
    echo "needs $binary: cargo build --release, or set STEPFLOW_LB_BIN" >&2
    exit 1
fi
# The client's side, the backend's side, and both ends of the latter, as the demo's component
# servers live in the same process.
ulimit -n "$(ulimit -Hn)"
limit=$(ulimit -n)
if [[ $limit != unlimited ]] && ((limit < connections * 4)); then
    echo "needs a hard limit of $((connections * 4)) descriptors, has $limit" >&2
    exit 1
fi

work=$(mktemp -d)
balancer="" attacker=""
# shellcheck disable=SC2317,SC2329 # It is called by the trap.
end() {
    stop
    rm -rf "$work"
}
trap end EXIT

# start MODE: a balancer of its own for each.
start() {
    local log=$work/$1.log
    : >"$log"
    BIND_ADDRESS=127.0.0.1:0 METRICS_ADDRESS=127.0.0.1:0 STEPFLOW_LB_ACCESS_LOG=off \
        "$binary" demo >"$log" 2>&1 &
    balancer=$!
    for _ in {1..100}; do
        # What it prints once it is ready.
        data=$(sed -n 's|.*serves http://\([^ ,]*\),.*|\1|p' "$log")
        metrics=$(sed -n 's|.*its metrics are at \(http://[^ ]*\)/metrics.*|\1|p' "$log")
        [[ -n $data && -n $metrics ]] && return 0
        kill -0 "$balancer" 2>/dev/null || break
        sleep 0.1
    done
    cat "$log" >&2
    exit 1
}

stop() {
    local pid
    for pid in $attacker $balancer; do
        if kill "$pid" 2>/dev/null; then
            wait "$pid" 2>/dev/null || true
        fi
    done
    attacker="" balancer=""
}

# gauge NAME: the sum over its series.
gauge() {
    curl -sS "$metrics/metrics" | awk -v name="stepflow_lb_$1" '
        index($1, name) == 1 && substr($1, length(name) + 1, 1) ~ /^({|$)/ { sum += $NF }
        END { print sum + 0 }'
}

failures() {
    curl -sS "$metrics/metrics" | sed -n 's/^stepflow_lb_failures_total{reason="\(.*\)"} /\1 /p'
}

resident_kib() {
    awk '/^VmRSS:/ { print $2 }' "/proc/$balancer/status"
}

descriptors() {
    local all=("/proc/$balancer/fd/"*)
    echo "${#all[@]}"
}

# Waits until no connection is open, on either side, and descriptors are back at $1.
settle() {
    local deadline=$((SECONDS + SETTLING_S))
    while ((SECONDS < deadline)); do
        if (($(gauge connections_open) == 0 && $(gauge upstream_idle) == 0)) &&
            (($(descriptors) <= $1)); then
            return 0
        fi
        sleep 0.2
    done
    return 1
}

# load FILE: wrk for a while; gives its rate, and its errors, of whatever kind.
load() {
    wrk -t1 -c16 "-d${WRK_S}s" "http://$data/load" >"$1" 2>&1
    awk '
        /^Requests\/sec:/ { rate = $2 }
        /Socket errors:/ { gsub(",", ""); errors += $4 + $6 + $8 + $10 }
        /Non-2xx or 3xx responses:/ { errors += $NF }
        END { printf "%d %d\n", rate, errors }' "$1"
}

# What slowhttptest is told in each mode. A target of 4 KB comes back in the answer, so that there
# is something to read slowly.
long=$(printf 'x%.0s' {1..4000})
options() {
    case "$1" in
        headers) echo -H -i 5 -x 24 -u "http://$data/" ;;
        body) echo -B -i 5 -x 10 -s 8192 -u "http://$data/" ;;
        range) echo -R -t HEAD -a 10 -b 3000 -u "http://$data/" ;;
        read) echo -X -k 10 -w 256 -y 512 -n 5 -z 32 -u "http://$data/$long" ;;
    esac
}

echo "$(nproc) cores, $connections connections for $seconds s in each mode"
passed=0 failed=0
for mode in "${modes[@]}"; do
    broken=()
    start "$mode"
    # The first requests make what lives as long as the process.
    load "$work/warm" >/dev/null
    settle 100000 || broken+=("connections stay open without any attack")
    sleep 2
    base_fds=$(descriptors) base_kib=$(resident_kib)
    read -r rate_alone errors_alone < <(load "$work/alone")
    failures >"$work/failures.before"
    accepted=$(gauge connections_accepted_total)
    read -r -a attack <<<"$(options "$mode")"
    slowhttptest -c "$connections" -r "$connections" -l "$seconds" -p 5 -v 1 "${attack[@]}" \
        >"$work/attack.log" 2>&1 &
    attacker=$!
    # Until they are all there, or as many as this mode leaves open.
    for _ in {1..50}; do
        (($(gauge connections_accepted_total) >= accepted + connections)) && break
        sleep 0.1
    done
    open=$(gauge connections_open) during_fds=$(descriptors)
    read -r rate errors < <(load "$work/beside")
    during_kib=$(resident_kib)
    # It closes what is left when its time is over.
    wait "$attacker" || true
    attacker=""
    came=$(($(gauge connections_accepted_total) - accepted))
    settle "$base_fds" || broken+=("not everything is closed after $SETTLING_S s")
    after_fds=$(descriptors)
    # The allocator gives pages back a moment later.
    sleep 2
    after_kib=$(resident_kib)
    failures >"$work/failures.after"
    reasons=$(awk 'NR == FNR { before[$1] = $2; next }
        $2 > before[$1] { printf "%s%s %d", sep, $1, $2 - before[$1]; sep = ", " }' \
        "$work/failures.before" "$work/failures.after")
    share=$((rate_alone > 0 ? rate * 100 / rate_alone : 0))
    # What the attacker says at its end, without its colours.
    seen=$(sed 's/\x1b\[[0-9;]*m//g' "$work/attack.log" |
        awk '/^(initializing|pending|connected|error|closed):/ { last[$1] = $2 }
             END { for (k in last) printf "%s %s  ", k, last[k] }')
    echo "$mode:"
    echo "  wrk           $rate_alone requests/s alone, $rate beside the attack ($share %)," \
        "$((errors_alone + errors)) errors"
    echo "  connections   $came accepted, wrk's included; $open open when the load began"
    echo "  attacker      ${seen:-says nothing}"
    echo "  failures      ${reasons:-none}"
    echo "  memory        $base_kib KiB before, $during_kib during, $after_kib after"
    echo "  descriptors   $base_fds before, $during_fds during, $after_fds after"
    ((came >= connections)) || broken+=("the attack did not take place:
$(tail -n 5 "$work/attack.log")")
    ((errors_alone + errors == 0)) || broken+=("wrk saw errors: $(grep -h -E 'errors|Non-2xx' \
        "$work/alone" "$work/beside" | tr '\n' ' ')")
    ((share >= 10)) || broken+=("others were hardly served")
    ((after_fds <= base_fds)) || broken+=("descriptors are not back")
    ((after_kib <= base_kib + GROWTH_KIB_MAX)) || broken+=("memory is not back")
    stop
    if grep -E ' ERROR |panicked' "$work/$mode.log"; then
        broken+=("the log holds errors")
    fi
    if ((${#broken[@]} > 0)); then
        printf '  BROKEN        %s\n' "${broken[@]}"
        failed=$((failed + 1))
    else
        passed=$((passed + 1))
    fi
done
# As `cargo test` says it, for whoever adds up.
verdict=ok
((failed == 0)) || verdict=FAILED
echo "test result: $verdict. $passed passed; $failed failed; 0 ignored"
((failed == 0))
