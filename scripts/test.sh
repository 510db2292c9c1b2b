#!/usr/bin/env bash
# Installs what the tests need, builds, and runs all of them. Works from a fresh clone.
#
#   scripts/test.sh                     everything but the image
#   scripts/test.sh --only STAGE[,...]  only these stages (and the build that they need)
#   scripts/test.sh --image             everything, and the container image (needs root)
#   scripts/test.sh --fuzz              everything, and ten seconds of each fuzz target
#   scripts/test.sh --slow-clients      everything, and slowhttptest in four modes (five minutes)
#   scripts/test.sh --sanitize          everything, and AddressSanitizer and valgrind (half an hour)
#
# Stages: check (format, lints, docs), rust (all Rust tests; for its comparison with other HTTP
# parsers it installs llhttp with npm and h11 with pip), budgets (instructions of the hot path,
# counted by valgrind; see benches/README.md), epoll (the socket suite with epoll), denied (part of
# the socket suite with io_uring refused by seccomp), soak (a minute of random faults; a few seconds
# of them are part of `rust`), stepflow-0.9 and stepflow-0.11 (real Stepflow through the balancer;
# `stepflow` means both), mcp (MCP's SDKs through the balancer), streams (event streams through the
# balancer to a browser, OpenAI's client, curl and Node.js), image, fuzz (libFuzzer; needs a nightly
# toolchain; two minutes warm, five more to build; the corpus and seconds of changes to it are part
# of `rust`), slow-clients and sanitize (see scripts/).
#
# Needs the Rust toolchain, a C compiler, Python 3 with venv, and Node.js with npm. As root on
# Debian it installs what is missing of the last two, of valgrind, and of what tests start (dnsmasq,
# strace, curl, Chromium); elsewhere it says what is missing and counts the suites that need it as
# skipped. Packages go to .venv-* and .node-* in this directory, logs to target/test-logs.
#
# Ends with one line: N passed, N failed, N skipped. Exits 1 when something failed or did not run;
# skipped suites count as that when CI=true. Takes about nineteen minutes cold on two cores,
# twelve warm.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

ALL_STAGES="check rust budgets epoll denied soak stepflow-0.9 stepflow-0.11 mcp streams"
MORE_STAGES="image fuzz slow-clients sanitize"
# `name:package` of the programs that tests start, by their Debian packages.
TEST_PROGRAMS=(dnsmasq:dnsmasq-base strace:strace)

usage() {
    echo "usage: scripts/test.sh [--only STAGE[,STAGE...]] [--image] [--fuzz]" \
        "[--slow-clients] [--sanitize]; stages: $ALL_STAGES $MORE_STAGES" >&2
    exit 2
}

stages=$ALL_STAGES
while (($# > 0)); do
    case "$1" in
        --only)
            (($# > 1)) || usage
            stages=" ${2//,/ } "
            stages=${stages/ stepflow / stepflow-0.9 stepflow-0.11 }
            shift
            ;;
        --image | --fuzz | --slow-clients | --sanitize) stages+=" ${1#--}" ;;
        *) usage ;;
    esac
    shift
done
for stage in $stages; do
    [[ " $ALL_STAGES $MORE_STAGES " == *" $stage "* ]] || usage
done

wants() {
    local stage
    for stage in "$@"; do
        [[ " $stages " == *" $stage "* ]] && return 0
    done
    return 1
}

# dnsmasq and debootstrap live in sbin, which is not on everybody's path.
export PATH="$PATH:/usr/sbin:/sbin"
export PYTHONDONTWRITEBYTECODE=1
target=${CARGO_TARGET_DIR:-target}
logs=$target/test-logs
mkdir -p "$logs"

passed=0 failed=0 skipped=0
troubles=()

heading() {
    printf '\n=== %s\n' "$1"
}

# A suite that could not run at all, and why.
skip() {
    echo "skipped: $1: $2"
    skipped=$((skipped + 1))
    troubles+=("skipped: $1: $2")
    if [[ ${CI:-} == true ]]; then
        failed=$((failed + 1))
    fi
}

# Adds up what `cargo test` and pytest say at their ends: "test result: ok. 3 passed; 0 failed; 1
# ignored; …" and "== 3 passed, 1 skipped in 2.1s ==".
count() {
    awk '
        /^test result: / || /^=+ .*[0-9]+ (passed|failed|errors?|skipped).* in [0-9.]+s/ {
            for (i = 2; i <= NF; i++) {
                n = $(i - 1)
                if ($i ~ /^passed/) passed += n
                else if ($i ~ /^(failed|errors?)/) failed += n
                else if ($i ~ /^(ignored|skipped)/) skipped += n
            }
        }
        END { print passed + 0, failed + 0, skipped + 0 }
    ' "$1"
}

# run NAME COMMAND...: runs one stage, shows what its tests concluded, and everything if one failed.
run() {
    local name=$1 status=0 began=$SECONDS log p f s
    shift
    log=$logs/${name// /-}.log
    heading "$name"
    "$@" >"$log" 2>&1 || status=$?
    read -r p f s < <(count "$log")
    # Something went wrong outside of any test: it did not compile, it crashed, it found no tests.
    if ((status != 0 && f == 0)); then
        f=1
    fi
    if ((f > 0)); then
        tail -n 400 "$log"
        troubles+=("failed: $name (exit $status): $log")
    fi
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    echo "$name: $p passed, $f failed, $s skipped, $((SECONDS - began)) s"
}

# As `run`, for a stage whose tests must exist: none at all is a failure.
run_tests() {
    local before=$((passed + failed))
    run "$@"
    if ((passed + failed == before)); then
        echo "$1: ran no test"
        failed=$((failed + 1))
        troubles+=("failed: $1: ran no test")
    fi
}

# build NAME COMMAND...: what later stages stand on; without it there is nothing to go on with.
build() {
    local began=$SECONDS name=$1
    shift
    heading "$name"
    if ! "$@" >"$logs/${name// /-}.log" 2>&1; then
        tail -n 100 "$logs/${name// /-}.log"
        troubles+=("failed: $name: $logs/${name// /-}.log")
        failed=$((failed + 1))
        finish
    fi
    echo "$name: $((SECONDS - began)) s"
}

finish() {
    heading "result after $SECONDS s"
    if ((${#troubles[@]} > 0)); then
        printf '%s\n' "${troubles[@]}"
    fi
    echo "$passed passed, $failed failed, $skipped skipped"
    ((failed == 0)) || exit 1
    exit 0
}

# --------------------------------------------------------------------------- what is needed

has_venv() {
    python3 -c 'import ensurepip, venv' 2>/dev/null
}

has_browser() {
    command -v chromium >/dev/null || command -v google-chrome >/dev/null
}

install_packages() {
    local missing=() entry
    if wants rust stepflow-0.9 stepflow-0.11 mcp streams; then
        has_venv || missing+=(python3 python3-venv)
    fi
    if wants rust epoll denied; then
        for entry in "${TEST_PROGRAMS[@]}"; do
            command -v "${entry%%:*}" >/dev/null || missing+=("${entry##*:}")
        done
    fi
    if wants budgets; then
        command -v valgrind >/dev/null || missing+=(valgrind)
    fi
    if wants rust mcp streams; then
        command -v node >/dev/null || missing+=(nodejs)
    fi
    if wants rust mcp; then
        command -v npm >/dev/null || missing+=(npm)
    fi
    if wants streams; then
        command -v curl >/dev/null || missing+=(curl)
    fi
    command -v cc >/dev/null || missing+=(gcc libc6-dev)
    install_debian "${missing[@]}"
    # Apart from the others: where it does not exist, they do.
    if wants streams && ! has_browser; then
        install_debian chromium
    fi
}

install_debian() {
    (($# > 0)) || return 0
    if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
        heading "installing $*"
        if (apt-get update -qq &&
            DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
                "$@") >"$logs/apt.log" 2>&1; then
            return 0
        fi
        tail -n 20 "$logs/apt.log"
    fi
    heading "missing"
    echo "not installed, and not installable from here: $*"
    echo "on Debian: sudo apt-get install $*"
}

# venv NAME REQUIREMENTS: makes .venv-NAME unless it is there and fits its requirements.
venv() {
    local dir=.venv-$1 wanted=$2
    if [[ -x $dir/bin/python ]] && cmp -s "$wanted" "$dir/installed-requirements.txt"; then
        return 0
    fi
    rm -rf "$dir"
    python3 -m venv "$dir" &&
        "$dir/bin/python" -m pip install --quiet --disable-pip-version-check -r "$wanted" &&
        cp "$wanted" "$dir/installed-requirements.txt"
}

# node_modules NAME DIRECTORY: installs what the lock file in there names into .node-NAME, unless it
# is there and fits.
node_modules() {
    local dir=.node-$1 wanted=$2/package-lock.json
    if [[ -d $dir/node_modules ]] && cmp -s "$wanted" "$dir/installed-lock.json"; then
        return 0
    fi
    rm -rf "$dir"
    mkdir "$dir" &&
        cp "$2/package.json" "$wanted" "$dir" &&
        npm --prefix "$dir" ci --ignore-scripts --no-audit --no-fund &&
        cp "$wanted" "$dir/installed-lock.json"
}

# The parsers that tests/differential compares with. One that cannot be installed is counted as
# skipped; if all are there, the tests must find them.
foreign_readers() {
    local here=tests/differential/foreign all=required
    if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
        skip llhttp "node and npm are not there (Debian: nodejs, npm)"
        all=
    elif ! node_modules llhttp "$here" >"$logs/node-llhttp.log" 2>&1; then
        tail -n 20 "$logs/node-llhttp.log"
        skip llhttp "it cannot be installed: $logs/node-llhttp.log"
        all=
    fi
    if ! has_venv; then
        skip h11 "python3 has no venv module (Debian: python3-venv)"
        all=
    elif ! venv h11 "$here/requirements.txt" >"$logs/venv-h11.log" 2>&1; then
        tail -n 20 "$logs/venv-h11.log"
        skip h11 "it cannot be installed: $logs/venv-h11.log"
        all=
    fi
    export LB_FOREIGN_READERS=$all
}

# MCP's own SDKs through the balancer: Python's of both generations, TypeScript's with the newer.
mcp_suite() {
    local generation name
    if ! has_venv; then
        heading mcp
        skip mcp "python3 has no venv module (Debian: python3-venv)"
        return 0
    fi
    if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
        skip mcp-typescript "node and npm are not there (Debian: nodejs, npm)"
    elif ! node_modules mcp tests/mcp >"$logs/node-mcp.log" 2>&1; then
        tail -n 20 "$logs/node-mcp.log"
        skip mcp-typescript "its packages cannot be installed: $logs/node-mcp.log"
    fi
    for generation in 1 2; do
        name=mcp-$generation
        if ! venv "$name" "tests/mcp/requirements-$generation.txt" >"$logs/$name-venv.log" 2>&1; then
            heading "$name"
            tail -n 20 "$logs/$name-venv.log"
            skip "$name" "its Python packages cannot be installed: $logs/$name-venv.log"
            continue
        fi
        run_tests "$name" env STEPFLOW_LB_BIN="$(realpath "$target")/release/stepflow-load-balancer" \
            MCP_NODE_MODULES="$PWD/.node-mcp/node_modules" ".venv-$name/bin/python" -m pytest \
            tests/mcp -p no:cacheprovider --color=no --durations=5
    done
}

# Event streams to their real readers.
streams_suite() {
    if ! has_venv; then
        heading streams
        skip streams "python3 has no venv module (Debian: python3-venv)"
        return 0
    fi
    if ! venv streams tests/streams/requirements.txt >"$logs/streams-venv.log" 2>&1; then
        heading streams
        tail -n 20 "$logs/streams-venv.log"
        skip streams "its Python packages cannot be installed: $logs/streams-venv.log"
        return 0
    fi
    has_browser || skip streams-browser "there is no browser (Debian: chromium)"
    command -v curl >/dev/null || skip streams-curl "curl is not there"
    command -v node >/dev/null || skip streams-node "node is not there (Debian: nodejs)"
    run_tests streams env STEPFLOW_LB_BIN="$(realpath "$target")/release/stepflow-load-balancer" \
        .venv-streams/bin/python -m pytest tests/streams \
        -p no:cacheprovider --color=no --durations=5
}

stepflow_suite() {
    local version=$1 name="stepflow-$1"
    if ! has_venv; then
        heading "$name"
        skip "$name" "python3 has no venv module (Debian: python3-venv)"
        return 0
    fi
    if ! venv "$name" "tests/stepflow/requirements-$version.txt" >"$logs/$name-venv.log" 2>&1; then
        heading "$name"
        tail -n 20 "$logs/$name-venv.log"
        skip "$name" "its Python packages cannot be installed: $logs/$name-venv.log"
        return 0
    fi
    run_tests "$name" env STEPFLOW_LB_BIN="$(realpath "$target")/release/stepflow-load-balancer" \
        ".venv-stepflow-$version/bin/python" -m pytest tests/stepflow \
        -p no:cacheprovider --color=no --durations=5
}

if ! command -v cargo >/dev/null; then
    echo "cargo is not there: install Rust $(sed -n 's/^channel = "\(.*\)"/\1/p' \
        rust-toolchain.toml) (https://rustup.rs)" >&2
    exit 1
fi
install_packages

# --------------------------------------------------------------------------- the stages

if wants check; then
    run check bash scripts/check.sh --quick
fi
if wants soak slow-clients stepflow-0.9 stepflow-0.11 mcp streams; then
    build "build (release)" cargo build --release --locked
fi
if wants rust epoll denied soak; then
    build "build (tests)" cargo test --locked --no-run
fi
if wants rust; then
    foreign_readers
    run_tests rust cargo test --locked --no-fail-fast
fi
if wants budgets; then
    if command -v valgrind >/dev/null; then
        run_tests budgets bash scripts/budgets.sh
    else
        skip budgets "valgrind is not there, which counts the instructions (Debian: valgrind)"
    fi
fi
if wants epoll; then
    run_tests epoll env STEPFLOW_LB_IO_DRIVER=epoll \
        cargo test --locked --no-fail-fast --test http --test peers --test catalogue
fi
if wants denied; then
    if command -v python3 >/dev/null; then
        # The driver is epoll then, which has just run all of them.
        run_tests denied python3 tests/support/deny_io_uring.py \
            cargo test --locked --no-fail-fast --test http -- bodies drain driver sse tunnel
    else
        skip denied "python3 is not there, which refuses io_uring for it"
    fi
fi
if wants soak; then
    run_tests soak bash scripts/soak.sh --minutes 1
    grep -E '^soak of|^resident: |violations$' "$logs/soak.log" || true
fi
if wants stepflow-0.9; then
    stepflow_suite 0.9
fi
if wants stepflow-0.11; then
    stepflow_suite 0.11
fi
if wants mcp; then
    mcp_suite
fi
if wants streams; then
    streams_suite
fi
if wants image; then
    if [[ $(id -u) == 0 ]]; then
        run image python3 scripts/image-test.py
    else
        skip image "it needs root, for mounts and chroot"
    fi
fi
if wants fuzz; then
    if cargo "+${FUZZ_TOOLCHAIN:-nightly}" --version >/dev/null 2>&1; then
        run_tests fuzz bash scripts/fuzz.sh --smoke
    else
        skip fuzz "there is no nightly toolchain, which libFuzzer needs"
    fi
fi
if wants slow-clients; then
    run_tests slow-clients bash scripts/slow-clients.sh
fi
if wants sanitize; then
    run_tests sanitize bash scripts/sanitize.sh
fi
finish
