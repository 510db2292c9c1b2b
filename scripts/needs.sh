# shellcheck shell=bash
# Sourced by scripts that start programs which not everybody has.

# needs PROGRAM[:PACKAGE]...: ends the script unless every program is there. As root on Debian it
# installs what is missing; elsewhere it says what that is.
needs() {
    local entry missing=()
    for entry in "$@"; do
        command -v "${entry%%:*}" >/dev/null || missing+=("${entry##*:}")
    done
    ((${#missing[@]} > 0)) || return 0
    if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -qq --no-install-recommends "${missing[@]}"
    else
        echo "needs ${missing[*]} (Debian: sudo apt-get install ${missing[*]})" >&2
        exit 1
    fi
}
