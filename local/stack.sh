# Sourced by the other scripts: paths, and how tools are installed.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
stack=$root/local/.stack
cd "$root"

# Bold on a terminal; no colour codes in files.
say() { if [ -t 1 ]; then printf '\033[1m%s\033[0m\n' "$*"; else printf '%s\n' "$*"; fi; }
fail() { printf '%s: %s\n' "$0" "$*" >&2; exit 1; }

need() {
    command -v "$1" >/dev/null || fail "$1 is missing: $2"
}

# Builds for the local stack. Cargo shows its progress only on a terminal; elsewhere, print a line for every tenth package.
build() {
    local command=(cargo build --profile local "$@") line built=0 all
    if [ -t 2 ]; then
        "${command[@]}"
        return
    fi
    # `cargo tree` accepts the same packages as `cargo build`, but neither targets nor a profile.
    all=$(cargo tree --edges normal,build --prefix none --format '{p}' "${@/--all-targets/--edges=normal,build,dev}" | sed 's, (\*)$,,' | sort -u | wc -l)
    "${command[@]}" 2>&1 | while IFS= read -r line; do
        case $line in
        *" Compiling "*)
            built=$((built + 1))
            [ $((built % 10)) -ne 0 ] || echo "$line ($built of $all packages, $SECONDS s)"
            ;;
        *) printf '%s\n' "$line" ;;
        esac
    done
}

# A virtual environment with pinned packages, recreated when the requirements file changes.
venv() {
    local name=$1 requirements=$2 why=$3
    need python3 "install Python 3.11 or newer, with venv (Debian: python3-venv)"
    if ! cmp -s "$requirements" "$stack/$name/requirements"; then
        say "Installing $why into local/.stack/$name (once)"
        rm -rf "${stack:?}/$name"
        python3 -m venv "$stack/$name" || fail "python3 -m venv failed: install Debian's python3-venv"
        "$stack/$name/bin/pip" install --quiet --disable-pip-version-check --requirement "$requirements" \
            || fail "pip could not install $requirements: is PyPI reachable?"
        cp "$requirements" "$stack/$name/requirements"
    fi
}

# Required programs, as `PROGRAM=PACKAGE`. On Debian, missing packages are installed without starting their daemons;
# elsewhere, an error names them.
debian() {
    local missing=() pair
    for pair in "$@"; do
        # sshd is not on the path of an ordinary user.
        PATH=$PATH:/usr/sbin command -v "${pair%%=*}" >/dev/null && continue
        [[ " ${missing[*]-} " == *" ${pair#*=} "* ]] || missing+=("${pair#*=}")
    done
    [ ${#missing[@]} -eq 0 ] && return
    command -v apt-get >/dev/null || fail "${missing[*]} (names of Debian packages) must be installed, and there is no apt-get here: install them yourself"
    local sudo=()
    if [ "$(id -u)" -ne 0 ]; then
        sudo=(sudo -n)
        "${sudo[@]}" true 2>/dev/null || fail "the Debian packages ${missing[*]} must be installed: install them, or run this as root"
    fi
    say "Installing the Debian packages ${missing[*]} (once; starts no daemon)"
    # invoke-rc.d runs this before it starts a service; 101 means no.
    local policy=/usr/sbin/policy-rc.d ours=
    if [ ! -e "$policy" ]; then
        ours=yes
        printf '#!/bin/sh\nexit 101\n' | "${sudo[@]}" tee "$policy" >/dev/null
        "${sudo[@]}" chmod +x "$policy"
    fi
    local done=0
    { "${sudo[@]}" apt-get update -qq \
        && "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}"; } \
        >"$stack/apt.log" 2>&1 || done=$?
    [ -n "$ours" ] && "${sudo[@]}" rm "$policy"
    [ $done -eq 0 ] || fail "apt-get could not install ${missing[*]}: see local/.stack/apt.log"
}

mkdir -p "$stack"
