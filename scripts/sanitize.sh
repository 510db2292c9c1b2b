#!/usr/bin/env bash
# Runs the program under tools that watch every access to memory.
#
#   scripts/sanitize.sh [miri] [asan] [valgrind]
#
# miri: the unit tests of `http1`, which reads what strangers send, interpreted: our code, and
# httparse and memchr below it, without their vector instructions. The tests that walk the largest
# spaces are left out: they would take hours. Needs the component miri of the nightly toolchain.
#
# asan: AddressSanitizer with leak detection, over the unit tests, the socket suite (tests/http,
# where the balancer runs inside the test process), and over the real program under a minute of
# scripts/soak.sh, on io_uring and on epoll. Needs a nightly toolchain (SANITIZE_TOOLCHAIN,
# `nightly`). The standard library itself is not instrumented, which would need its source.
#
# valgrind: memcheck over the real program under a minute of soak, on epoll: what the kernel writes
# through a ring memcheck does not see, so it would take it for uninitialised. Needs valgrind.
#
# Leaks: monoio frees nothing of a task that still waits when its runtime ends, and a worker's
# runtime ends with the process, so what was allocated under it is left out of the leak check, and
# memcheck makes none. What leaks while the program runs is what scripts/soak.sh looks for.
#
# Both use the system's allocator instead of mimalloc (`--cfg system_allocator`), whose blocks they
# cannot tell apart. Without its toolchain or program a part says "skipped". The builds go to
# directories of their own and take a quarter of an hour on two cores; the runs take as long again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

toolchain=${SANITIZE_TOOLCHAIN:-nightly}
host=x86_64-unknown-linux-gnu
base=$(realpath -m "${CARGO_TARGET_DIR:-target}")/sanitize
parts=()
for argument in "$@"; do
    case "$argument" in
        miri | asan | valgrind) parts+=("$argument") ;;
        *)
            echo "usage: scripts/sanitize.sh [miri] [asan] [valgrind]" >&2
            exit 2
            ;;
    esac
done
((${#parts[@]} > 0)) || parts=(miri asan valgrind)
mkdir -p "$base"
failed=0

# step NAME COMMAND...: shows what its tests concluded, and its end if they failed.
step() {
    local name=$1 status=0 log
    shift
    log=$base/${name// /-}.log
    echo "--- $name"
    "$@" >"$log" 2>&1 || status=$?
    grep -h -E '^test result: |[0-9] violations$|^resident: ' "$log" || true
    if ((status != 0)); then
        tail -n 60 "$log"
        echo "$name: FAILED, exit $status, log $log"
        failed=$((failed + 1))
    fi
}

# wrapper FILE COMMAND...: a program that runs the given one in front of its own arguments, because
# the soak gives the balancer an environment and a pid of its own.
wrapper() {
    local file=$1
    shift
    printf '#!/bin/sh\nexec %s "$@"\n' "$*" >"$file"
    chmod +x "$file"
}

# soak PROGRAM DRIVER VARIABLE...: a minute of load, for a program that is slow.
soak() {
    local program=$1 driver=$2
    shift 2
    # Freed blocks are held back for a while, so memory grows more than it would otherwise.
    env STEPFLOW_LB_BIN="$program" STEPFLOW_LB_IO_DRIVER="$driver" SOAK_SECONDS=60 \
        SOAK_GROWTH_KIB_MAX=262144 "$@" cargo test --locked --test soak -- --nocapture --exact \
        under_random_faults_every_response_is_right_and_nothing_is_left_behind
}

miri() {
    if ! cargo "+$toolchain" miri --version >/dev/null 2>&1; then
        echo "skipped: miri: the toolchain '$toolchain' has none" \
            "(rustup component add miri --toolchain $toolchain)"
        return 0
    fi
    step "miri http1" env CARGO_TARGET_DIR="$base/miri" MIRIFLAGS=-Zmiri-disable-isolation \
        RUSTFLAGS="--cfg system_allocator" PROPTEST_CASES=4 \
        cargo "+$toolchain" miri test --locked --lib -- http1:: \
        --skip every_day_follows --skip every_state_survives --skip every_split_agrees \
        --skip where_the_input_is_cut --skip a_head_that_drips --skip every_name_that_must \
        --skip verbatim_bodies_lose
}

asan() {
    if ! cargo "+$toolchain" --version >/dev/null 2>&1; then
        echo "skipped: asan: there is no toolchain '$toolchain'" \
            "(rustup toolchain install $toolchain)"
        return 0
    fi
    # The second are threads of the tests' own backends, which nobody joins.
    printf 'leak:%s\n' monoio support::backend >"$base/leaks"
    local leaks="suppressions=$base/leaks:print_suppressions=0"
    local test=(env CARGO_TARGET_DIR="$base/asan" ASAN_OPTIONS=detect_leaks=1
        LSAN_OPTIONS="$leaks" RUSTFLAGS="-Zsanitizer=address --cfg system_allocator"
        cargo "+$toolchain" test --locked --target "$host")
    # How large a task is depends on the compiler, and the bound is one for the stable one.
    step "asan unit tests" "${test[@]}" --lib -- --skip an_idle_connection_stays_small
    step "asan socket suite" "${test[@]}" --test http
    wrapper "$base/asan-program" env ASAN_OPTIONS=detect_leaks=1:quarantine_size_mb=16 \
        "LSAN_OPTIONS=$leaks" "$base/asan/$host/debug/stepflow-load-balancer"
    local driver
    for driver in auto epoll; do
        step "asan soak $driver" soak "$base/asan-program" "$driver" \
            SOAK_TIMEOUT_SECONDS=10
    done
}

valgrind_part() {
    if ! command -v valgrind >/dev/null; then
        echo "skipped: valgrind: it is not installed (Debian: valgrind)"
        return 0
    fi
    step "valgrind build" env CARGO_TARGET_DIR="$base/valgrind" \
        RUSTFLAGS="--cfg system_allocator" cargo build --locked
    wrapper "$base/valgrind-program" valgrind --quiet --error-exitcode=99 --leak-check=no \
        --fair-sched=yes "$base/valgrind/debug/stepflow-load-balancer"
    step "valgrind soak" soak "$base/valgrind-program" epoll SOAK_CLIENTS=7 \
        SOAK_TIMEOUT_SECONDS=20
}

for part in "${parts[@]}"; do
    case "$part" in
        miri) miri ;;
        asan) asan ;;
        valgrind) valgrind_part ;;
    esac
done
((failed == 0))
