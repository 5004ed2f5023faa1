#!/bin/sh
# Builds the vCenter simulator: build.sh OUT. Does nothing while OUT is newer than the sources.
# Needs Debian's golang-go and golang-github-vmware-govmomi-dev, and no network.
set -eu
out=${1:?usage: build.sh OUT}
src=$(cd "$(dirname "$0")" && pwd)
case $out in /*) ;; *) out=$PWD/$out ;; esac

newer() { [ -n "$(find "$src" -maxdepth 1 \( -name '*.go' -o -name build.sh \) -newer "$out" -print -quit)" ]; }
if [ -x "$out" ] && ! newer; then
    exit 0
fi
mkdir -p "$(dirname "$out")"
# Go refuses to run without a cache, and looks for one under HOME.
export GOCACHE="${GOCACHE:-${XDG_CACHE_HOME:-${HOME:-$(dirname "$out")}/.cache}/go-build}"
mkdir -p "$GOCACHE"
export GO111MODULE=off GOPATH=/usr/share/gocode GOFLAGS=
# Two builds at the same time must not write into each other's file.
tmp=$out.$$
trap 'rm -f "$tmp"' EXIT
(cd "$src" && go build -o "$tmp" .)
mv "$tmp" "$out"
