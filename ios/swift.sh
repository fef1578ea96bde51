#!/usr/bin/env bash
# ios/swift.sh ARGUMENTS...         runs `swift ARGUMENTS...` in this folder
# ios/swift.sh swiftc ARGUMENTS...  runs the compiler; so does swift-symbolgraph-extract
#
# With the machine's own Swift, or else with the one in the root file system that PFL_SWIFT_ROOT names, or that toolchain.sh
# made. There the repository appears as /src; mounts are private and vanish.
# swift-crypto in /opt/swift-crypto of that root spares the download.
#
# What was built against stand-ins (PFL_APPLE_STUBS) or with a sanitizer cannot be linked with what was not, so each kind has a
# folder of its own in .build, unless --scratch-path names one.
#
# PFL_SWIFT_CA: a file with the certificates of those whom programs in that root are to trust; by default nobody is.
set -euo pipefail
ios=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
case ${1:-} in
swiftc | swift-symbolgraph-extract) ;;
*) set -- swift "$@" ;;
esac
kind=${PFL_APPLE_STUBS:+stubs}
for argument; do
    case $argument in
    --sanitize=*) kind+=${kind:+-}${argument#*=} ;;
    --scratch-path | --scratch-path=* | --build-path | --build-path=*)
        kind=
        break
        ;;
    esac
done
case "$1 ${2:-}" in
"swift build" | "swift test" | "swift run" | "swift package")
    [ -z "$kind" ] || set -- "$1" "$2" --scratch-path ".build/$kind" "${@:3}"
    ;;
esac
if command -v swift >/dev/null; then
    cd "$ios"
    exec "$@"
fi
root=${PFL_SWIFT_ROOT:-$("$ios/toolchain.sh" where)}
if [ ! -x "$root/usr/libexec/swift/bin/swift" ] && [ ! -x "$root/usr/bin/swift" ]; then
    echo "the Swift package needs Swift 6: install it (https://www.swift.org/install), or, where apt is, run ios/toolchain.sh," >&2
    echo "or set PFL_SWIFT_ROOT to a root file system that has it" >&2
    exit 2
fi
own=(--mount)
[ "$(id -u)" = 0 ] || own=(--user --map-root-user --mount)
# shellcheck disable=SC2016
exec unshare "${own[@]}" --pid --fork --kill-child bash -c '
    set -e
    root=$1 repository=$2
    shift 2
    mount --make-rprivate /
    mkdir -p "$root/src"
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    mount --bind "$repository" "$root/src"
    if [ -n "${PFL_SWIFT_CA:-}" ]; then
        mkdir -p "$root/etc/ssl/certs"
        mount -t tmpfs tmpfs "$root/etc/ssl/certs"
        cp "$PFL_SWIFT_CA" "$root/etc/ssl/certs/ca-certificates.crt"
    fi
    given=() # what package and tests are told by the environment
    for name in ${!PFL_@}; do
        case $name in PFL_SWIFT_* | PFL_CACHE) ;; *) given+=("$name=${!name}") ;; esac
    done
    crypto=()
    [ ! -d "$root/opt/swift-crypto" ] || crypto=(PFL_SWIFT_CRYPTO=/opt/swift-crypto)
    exec chroot "$root" /usr/bin/env -i HOME=/tmp LANG=C.UTF-8 PATH=/usr/libexec/swift/bin:/usr/bin:/bin:/usr/sbin:/sbin \
        "${crypto[@]}" "${given[@]}" \
        bash -c "cd /src/ios && exec \"\$@\"" _ "$@"' _ "$root" "$(dirname "$ios")" "$@"
