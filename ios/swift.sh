#!/usr/bin/env bash
# ios/swift.sh ARGUMENTS...         runs `swift ARGUMENTS...` in this folder
# ios/swift.sh swiftc ARGUMENTS...  runs the compiler
#
# With the machine's own Swift, or else with the one in the root file system that PFL_SWIFT_ROOT names, or that toolchain.sh
# made. There the repository appears as /src; mounts are private and vanish.
# swift-crypto in /opt/swift-crypto of that root spares the download.
set -euo pipefail
ios=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ "${1:-}" = swiftc ] || set -- swift "$@"
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
    given=() # what package and tests are told by the environment
    for name in ${!PFL_@}; do
        case $name in PFL_SWIFT_* | PFL_CACHE) ;; *) given+=("$name=${!name}") ;; esac
    done
    crypto=()
    [ ! -d "$root/opt/swift-crypto" ] || crypto=(PFL_SWIFT_CRYPTO=/opt/swift-crypto)
    exec chroot "$root" /usr/bin/env -i HOME=/tmp LANG=C.UTF-8 PATH=/usr/libexec/swift/bin:/usr/bin:/bin:/usr/sbin:/sbin \
        "${crypto[@]}" "${given[@]}" \
        bash -c "cd /src/ios && exec \"\$@\"" _ "$@"' _ "$root" "$(dirname "$ios")" "$@"
