#!/bin/sh
# Instructions per pick, counted by callgrind: for docs/BALANCING.md. Needs valgrind.
# The difference of two runs, so that setting up the world does not count.
set -eu
cd "$(dirname "$0")/.."

bench=$(cargo bench --bench pick --no-run --message-format=json 2>/dev/null |
    sed -n 's/.*"executable":"\([^"]*\/pick-[^"]*\)".*/\1/p' | tail -n 1)

instructions() {
    valgrind --tool=callgrind --callgrind-out-file=/dev/null "$bench" "$@" 2>&1 |
        sed -n 's/.*Collected : \([0-9]*\).*/\1/p'
}

for picker in least_connections round_robin least_response_time random power_of_two \
    consistent_hash consistent_hash_bounded; do
    printf '%-24s' "$picker"
    for backends in 3 100 10000; do
        few=$(instructions "$picker" "$backends" 1000)
        many=$(instructions "$picker" "$backends" 11000)
        printf '  %6s: %6s' "$backends" "$(((many - few) / 10000))"
    done
    printf '\n'
done
