#!/usr/bin/env bash
# Checks the text of the project: format, lints, documentation, licences, scripts.
#
#   scripts/check.sh          all of it
#   scripts/check.sh --quick  format, lints and documentation only
#
# Needs the Rust toolchain of rust-toolchain.toml. cargo-deny and shellcheck are used when they are
# there; what is left out is said. Changes nothing. Takes about a minute cold, seconds warm.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

quick=no
for argument in "$@"; do
    case "$argument" in
        --quick) quick=yes ;;
        *)
            echo "unknown argument '$argument'; usage: scripts/check.sh [--quick]" >&2
            exit 2
            ;;
    esac
done

failed=()

# Runs all checks even when one fails: one round trip shows everything there is to mend.
check() {
    local name=$1
    shift
    echo "--- $name: $*"
    if ! "$@"; then
        failed+=("$name")
    fi
}

check format cargo fmt --all --check
check lints cargo clippy --locked --all-targets -- -D warnings
RUSTDOCFLAGS="-D warnings" check documentation \
    cargo doc --locked --no-deps --document-private-items

if [[ $quick == no ]]; then
    check tidy cargo test --locked --quiet --test tidy

    if cargo deny --version >/dev/null 2>&1; then
        check licences cargo deny --locked check licenses bans sources
        # The advisories live in a repository of their own, which is not reachable everywhere.
        if cargo deny fetch db >/dev/null 2>&1; then
            check advisories cargo deny --locked check advisories
        else
            echo "--- advisories: not checked, the advisory database cannot be fetched from here"
        fi
    else
        echo "--- licences, advisories: not checked, install cargo-deny (cargo install cargo-deny)"
    fi

    if command -v shellcheck >/dev/null; then
        mapfile -t scripts < <(git ls-files '*.sh' .ci/run)
        check scripts shellcheck "${scripts[@]}"
    else
        echo "--- scripts: not checked, install shellcheck"
    fi
fi

if ((${#failed[@]} > 0)); then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
echo "all checks passed"
