#!/usr/bin/env bash
# ios/swift.sh ARGUMENTS...  runs `swift ARGUMENTS...` in this folder: with the machine's own Swift, or else with the one in
# the root file system that PFL_SWIFT_ROOT names, where the repository appears as /src. Mounts are private and vanish.
# swift-crypto in /opt/swift-crypto of that root spares the download.
set -euo pipefail
ios=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if command -v swift >/dev/null; then
    cd "$ios"
    exec swift "$@"
fi
root=${PFL_SWIFT_ROOT:-}
if [ ! -x "${root:-/nowhere}/usr/libexec/swift/bin/swift" ] && [ ! -x "${root:-/nowhere}/usr/bin/swift" ]; then
    echo "the Swift package needs Swift 6: install it (https://www.swift.org/install), or set PFL_SWIFT_ROOT to a root file" >&2
    echo "system that has it (as Debian's package swiftlang, unpacked)" >&2
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
    crypto=()
    [ ! -d "$root/opt/swift-crypto" ] || crypto=(PFL_SWIFT_CRYPTO=/opt/swift-crypto)
    exec chroot "$root" /usr/bin/env -i HOME=/tmp LANG=C.UTF-8 PATH=/usr/libexec/swift/bin:/usr/bin:/bin:/usr/sbin:/sbin \
        "${crypto[@]}" ${PFL_STRICT:+"PFL_STRICT=$PFL_STRICT"} ${PFL_BUNDLES:+"PFL_BUNDLES=$PFL_BUNDLES"} \
        ${PFL_SCENARIOS_WRITE:+"PFL_SCENARIOS_WRITE=$PFL_SCENARIOS_WRITE"} \
        bash -c "cd /src/ios && exec swift \"\$@\"" _ "$@"' _ "$root" "$(dirname "$ios")" "$@"
