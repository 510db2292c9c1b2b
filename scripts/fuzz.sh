#!/usr/bin/env bash
# Fuzzes the parts that read what strangers send. See fuzz/README.md.
#
#   scripts/fuzz.sh [--smoke | --minutes N | --merge] [TARGET...]
#
#   --smoke      10 seconds for each target (the default)
#   --minutes N  N minutes for each target
#   --merge      no fuzzing: adds what earlier runs found and covers more to fuzz/corpus
#
# Without targets it takes all of them, one after the other, on one core. What a run finds is kept
# in the build directory and used by the next one; an input that breaks a property goes to
# fuzz/artifacts, and the script exits 1.
#
# Needs a nightly toolchain (FUZZ_TOOLCHAIN, `nightly`); without one it says so and exits 77, which
# test harnesses read as "skipped". Installs cargo-fuzz if it is missing. The first build takes
# about five minutes on two cores.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

SKIPPED=77
toolchain=${FUZZ_TOOLCHAIN:-nightly}
seconds=10
mode=fuzz
targets=()

usage() {
    echo "usage: scripts/fuzz.sh [--smoke | --minutes N | --merge] [TARGET...]; targets:" \
        "$(all_targets)" >&2
    exit 2
}

all_targets() {
    local file
    for file in fuzz/fuzz_targets/*.rs; do
        basename "$file" .rs
    done | tr '\n' ' '
}

while (($# > 0)); do
    case "$1" in
        --smoke) seconds=10 ;;
        --minutes)
            [[ ${2:-} =~ ^[0-9]+$ && $2 -gt 0 ]] || usage
            seconds=$(($2 * 60))
            shift
            ;;
        --merge) mode=merge ;;
        -*) usage ;;
        *)
            [[ -f fuzz/fuzz_targets/$1.rs ]] || usage
            targets+=("$1")
            ;;
    esac
    shift
done
if ((${#targets[@]} == 0)); then
    read -r -a targets <<<"$(all_targets)"
fi

if ! cargo "+$toolchain" --version >/dev/null 2>&1; then
    echo "skipped: there is no toolchain '$toolchain', which libFuzzer needs" \
        "(rustup toolchain install $toolchain)"
    exit "$SKIPPED"
fi
if ! cargo fuzz --version >/dev/null 2>&1; then
    echo "installing cargo-fuzz"
    cargo "+$toolchain" install cargo-fuzz --locked --quiet
fi

# A build directory of its own: another compiler and other flags would take turns with `cargo test`.
base=$(realpath -m "${CARGO_TARGET_DIR:-target}")/fuzz
export CARGO_TARGET_DIR=$base
work=$base/found
mkdir -p "$work"

dictionary() {
    case "$1" in
        config) echo -dict=fuzz/config.dict ;;
        events) echo -dict=fuzz/events.dict ;;
        plane) ;;
        *) echo -dict=fuzz/http.dict ;;
    esac
}

echo "building"
cargo "+$toolchain" fuzz build

passed=0 failed=0
for target in "${targets[@]}"; do
    corpus=fuzz/corpus/$target
    log=$work/$target.log
    mkdir -p "$work/$target"
    if [[ $mode == merge ]]; then
        # By edges, not by how often each is taken: that would be thousands of files.
        cargo "+$toolchain" fuzz run "$target" "$corpus" "$work/$target" -- -set_cover_merge=1 \
            -use_counters=0 -max_len=256 >"$log" 2>&1
        echo "$target: $(find "$corpus" -type f | wc -l) inputs," \
            "$(du -b -s "$corpus" | cut -f1) octets"
        continue
    fi
    # One job, at low priority: a fuzzer is a guest on this machine. An input that takes longer than
    # five seconds is a finding too.
    options=("-max_total_time=$seconds" -max_len=4096 -timeout=5 -rss_limit_mb=2048
        -print_final_stats=1)
    mapfile -t -O "${#options[@]}" options < <(dictionary "$target")
    status=0
    nice -n 10 cargo "+$toolchain" fuzz run "$target" "$work/$target" "$corpus" -- \
        "${options[@]}" >"$log" 2>&1 || status=$?
    executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    coverage=$(grep -o 'cov: [0-9]* ft: [0-9]*' "$log" | tail -n 1)
    if ((status == 0)); then
        passed=$((passed + 1))
        echo "$target: ${executions:-?} executions in $seconds s, ${coverage:-no coverage}"
    else
        failed=$((failed + 1))
        tail -n 60 "$log"
        echo "$target: FAILED, exit $status, log $log"
    fi
done
[[ $mode == merge ]] && exit 0
# As `cargo test` says it, for whoever adds up.
verdict=ok
((failed == 0)) || verdict=FAILED
echo "test result: $verdict. $passed passed; $failed failed; 0 ignored"
((failed == 0))
