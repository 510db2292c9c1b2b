#!/usr/bin/env bash
# Counts the instructions of the hot path and holds them against benches/budgets.toml. Fails where
# a count has left its budget, in either direction. See benches/README.md.
#
#   scripts/budgets.sh            compares
#   scripts/budgets.sh --update   writes what it counts into benches/budgets.toml
#
# Needs valgrind and the Rust toolchain. Builds with the release profile: minutes cold; the counting
# takes some seconds.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1:-}" in
    "" | --update) ;;
    *)
        echo "unknown argument '$1'; usage: scripts/budgets.sh [--update]" >&2
        exit 2
        ;;
esac
if ! command -v valgrind >/dev/null; then
    echo "valgrind is not there, which counts the instructions (Debian: valgrind)" >&2
    exit 1
fi
exec cargo bench --locked --bench instructions -- "$@"
