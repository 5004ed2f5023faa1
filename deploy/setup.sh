#!/bin/sh
# Makes this checkout runnable on a Debian machine: system packages, .venv, the vCenter simulator in .build/.
#
# Installs only what is missing, through whatever apt and pip are configured to use, and does nothing (in well under
# a second) when everything is there. Run by every target of the Makefile.
# PYTHON=/path/to/python3 chooses the interpreter (3.11 or newer). `setup.sh bench` also installs the programs that the
# benchmarks compare with.
set -eu

cd "$(dirname "$0")/.."
# A user's PATH on Debian has no sbin, where mkfs lives; golang-go may be in its versioned folder only.
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
export PATH

mkdir -p .build
# Caches of pip and go go to HOME: give them one that exists, whatever the caller's environment looks like.
if [ ! -d "${HOME:-/nonexistent}" ] || [ ! -w "$HOME" ]; then
    mkdir -p .build/home
    HOME=$PWD/.build/home
    export HOME
    unset XDG_CACHE_HOME XDG_CONFIG_HOME
fi

# Two `make` at once would build into the same folders. The lock goes with this shell; 9 is not left to children.
exec 9>.build/setup.lock
flock -w 1800 9 || { echo "setup: another setup has held .build/setup.lock for half an hour; end it and run again" >&2; exit 1; }

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# ---- the system ------------------------------------------------------------------------------------------------

suitable() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

# The first python that is new enough and can make virtual environments (Debian packages the latter apart).
find_python() {
    for candidate in "${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3; do
        [ -n "$candidate" ] && suitable "$candidate" || continue
        "$candidate" -c 'import venv, ensurepip' >/dev/null 2>&1 || continue
        command -v "$candidate"
        return 0
    done
    return 1
}

initdb_there() {
    command -v initdb >/dev/null 2>&1 && return 0
    for file in /usr/lib/postgresql/*/bin/initdb; do [ -x "$file" ] && return 0; done
    return 1
}

missing_packages() {
    environment_is_current || find_python >/dev/null || echo "python3 python3-venv"
    command -v redis-server >/dev/null || echo redis-server
    command -v go >/dev/null || echo golang-go
    [ -d /usr/share/gocode/src/github.com/vmware/govmomi ] || echo golang-github-vmware-govmomi-dev
    initdb_there || echo postgresql
    command -v mkfs.xfs >/dev/null || echo xfsprogs
    command -v mkfs.ext4 >/dev/null && command -v debugfs >/dev/null || echo e2fsprogs
    command -v mount >/dev/null || echo mount
    command -v nbdkit >/dev/null || echo nbdkit
    [ -n "$(find /usr/lib /usr/lib64 -maxdepth 2 -name 'libnbd.so.0' -print -quit 2>/dev/null)" ] || echo libnbd0
    command -v gcc >/dev/null && [ -e /usr/include/stdio.h ] || echo gcc libc6-dev
}

# Debian starts a daemon as soon as its package is configured. Ours are started by the lab and the tests, each with its
# own port and folder, so the packaged ones are neither started now (policy-rc.d, for the time of the installation and
# only where there is none) nor at the next boot; daemons that were there before are left alone.
as_root_install() {
    cat <<'SCRIPT'
set -eu
policy=/usr/sbin/policy-rc.d
trap '[ -z "${ours:-}" ] || rm -f "$policy"' EXIT
trap 'exit 130' HUP INT TERM
if [ ! -e "$policy" ]; then
    ours=yes
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
apt="apt-get -q -y -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3"
# An unreachable third-party source must not stop us: whether the packages can be had is seen by installing them.
$apt update || echo "setup: apt-get update reported a problem; going on with the lists that are there" >&2
$apt install --no-install-recommends "$@"
for package in "$@"; do
    case $package in redis-server | postgresql)
        { systemctl disable "$package" || update-rc.d "$package" disable; } >/dev/null 2>&1 || true ;;
    esac
done
SCRIPT
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

install_packages() {
    # The lists must be split: several words may stand in one line.
    # shellcheck disable=SC2046
    set -- $(missing_packages)
    [ $# -eq 0 ] && return 0
    command -v apt-get >/dev/null || fail "these Debian packages are missing and there is no apt-get to install them: $*"
    [ "$(id -u)" -eq 0 ] || command -v sudo >/dev/null ||
        fail "these Debian packages are missing: $*. Install them as root, or install sudo, and run this again."
    say "installing the Debian packages $* (a minute or so; log in .build/apt.log)"
    as_root sh -c "$(as_root_install)" install "$@" >.build/apt.log 2>&1 9>&- || {
        tail -n 20 .build/apt.log >&2
        fail "apt-get could not install: $*. The end of .build/apt.log is above."
    }
    # shellcheck disable=SC2046
    set -- $(missing_packages)
    [ $# -eq 0 ] || fail "installed, but still not usable: $*"
}

missing_peers() {
    for pair in borg:borgbackup restic:restic qemu-img:qemu-utils rsync:rsync nbdcopy:libnbd-bin; do
        command -v "${pair%%:*}" >/dev/null || echo "${pair#*:}"
    done
}

# What the benchmarks compare with, one after the other: what cannot be had is left out of the table, and said there.
install_peers() {
    for package in $(missing_peers); do
        say "installing $package (log in .build/apt-$package.log)"
        as_root sh -c "$(as_root_install)" install "$package" >".build/apt-$package.log" 2>&1 9>&- ||
            say "$package could not be installed; the benchmarks go without it"
    done
}

# nbdkit's vddk plugin is in Debian's contrib from trixie on, and also runs under the nbdkit of the release before. Where
# nbdkit does not have it that one file is fetched from there, by lists of its own: the system's sources stay as they
# are. Where that fails it is said and tried again the next day: only the tests of the carrier nbd need it.
fetch_vddk_plugin() {
    plugin=.build/nbdkit-vddk-plugin.so
    [ ! -e "$plugin" ] && ! nbdkit vddk --dump-plugin >/dev/null 2>&1 || return 0
    [ -z "$(find .build/vddk.log -mtime -1 2>/dev/null)" ] || return 0
    say "fetching nbdkit's vddk plugin (log in .build/vddk.log)"
    rm -rf .build/vddk
    mkdir -p .build/vddk/lists/partial .build/vddk/cache/archives/partial
    (
        set -eu
        keys=/usr/share/keyrings/debian-archive-keyring.gpg
        archive=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Created-By: Packages' 'Origin: Debian' |
            awk '$2 !~ /-/ { print $1; exit }')
        cd .build/vddk
        echo "deb [signed-by=$keys] $archive trixie contrib" >sources.list
        apt="-q -o Dir::Etc::sourcelist=$PWD/sources.list -o Dir::Etc::sourceparts=-"
        apt="$apt -o Dir::State::lists=$PWD/lists -o Dir::Cache=$PWD/cache"
        # shellcheck disable=SC2086
        apt-get $apt update && apt-get $apt download nbdkit-plugin-vddk
        dpkg -x nbdkit-plugin-vddk_*.deb .
        mv usr/lib/*/nbdkit/plugins/nbdkit-vddk-plugin.so ../
    ) >.build/vddk.log 2>&1 9>&- || say "nbdkit's vddk plugin could not be had; the carrier nbd is not tested here"
    rm -rf .build/vddk
}

# ---- python ----------------------------------------------------------------------------------------------------

# What .venv was made from. The folder belongs to it: a virtual environment does not survive being moved.
fingerprint() { { printf '%s\n' "$PWD" "${PYTHON:-}"; cat requirements.lock pyproject.toml; } | sha256sum; }

# The import tells whether the system's Python was replaced by another version underneath: blake3 is compiled for one.
environment_is_current() {
    [ "$(cat .venv/.stamp 2>/dev/null)" = "$(fingerprint)" ] && .venv/bin/python -c 'import blake3' 2>/dev/null
}

make_environment() {
    python=$(find_python) || fail "no python3 >= 3.11 with venv found; install python3-venv or set PYTHON"
    say "making .venv with $python"
    rm -rf .venv
    "$python" -m venv .venv || fail "$python could not make .venv; is its venv package complete?"
    # Hashes for everything that comes from outside; the project itself is this folder and has none.
    pip="env PIP_DISABLE_PIP_VERSION_CHECK=1 .venv/bin/python -m pip"
    $pip install -qq --no-deps --require-hashes -r requirements.lock 9>&- ||
        fail "pip could not install requirements.lock. Its message is above."
    $pip install -qq --no-deps --no-build-isolation -e . 9>&- || fail "pip could not install the project itself. Its message is above."
    $pip check >/dev/null || fail "requirements.lock does not fit pyproject.toml (make lock mends that): $($pip check)"
    fingerprint >.venv/.stamp
}

# ---- the simulator ---------------------------------------------------------------------------------------------

install_packages
[ "${1:-}" != bench ] || install_peers
fetch_vddk_plugin
environment_is_current || make_environment
deploy/simulator/build.sh .build/vcenter-simulator 9>&- || fail "the vCenter simulator could not be built. The message of go is above."
