#!/usr/bin/env bash
# ios/toolchain.sh           makes a root file system with Swift, where swift.sh finds it, unless it is there already
# ios/toolchain.sh where     says where that is
# ios/toolchain.sh remove    removes it
#
# For machines of Debian's kind without Swift: Debian's own packages of the compiler and of ONNX Runtime are downloaded with
# apt, which checks that Debian signed them, and are unpacked into a folder of their own. Nothing is installed, no script of a
# package is run, and no rights are needed. The source of swift-crypto comes from Debian's source of the compiler.
# The mirror is the one that this machine's apt uses for Debian, or PFL_DEBIAN_MIRROR.
set -euo pipefail

suite=trixie
keys=/usr/share/keyrings/debian-archive-keyring.gpg
packages=(swiftlang libonnxruntime-dev libc6-dev libstdc++-14-dev bash coreutils tzdata)
# What neither builds nor tests a package. The parts that only debug, serve an editor or link statically are half of the bytes.
left_out=(
    './usr/share/doc' './usr/share/man' './usr/share/info' './usr/share/locale' './usr/share/lintian'
    '*/libexec/swift/bin/lldb*' '*/libexec/swift/bin/lld' '*/libexec/swift/bin/clangd' '*/libexec/swift/bin/docc'
    '*/libexec/swift/bin/sourcekit-lsp' '*/libexec/swift/bin/repl_swift' '*/libexec/swift/lib/liblldb*'
    '*/libexec/swift/lib/libLTO*' '*/libexec/swift/lib/libsourcekitdInProc*'
    '*/lib/swift/embedded' '*/lib/swift/FrameworkABIBaseline' '*/lib/swift_static'
)

root=${PFL_CACHE:-$HOME/.cache/pfl-mobile}/swift
# changes with what is in it
made_by=$(sha256sum "${BASH_SOURCE[0]}" | cut -c1-16)

refuse() {
    echo "ios/toolchain.sh: $1" >&2
    exit 2
}

case ${1:-make} in
make) ;;
where)
    echo "$root"
    exit
    ;;
remove)
    rm -rf "$root" "$root".partial.*
    exit
    ;;
*) refuse "unknown command '$1'; see its first lines" ;;
esac

if [ "$(cat "$root/etc/pfl-mobile" 2>/dev/null || true)" = "$made_by" ]; then exit; fi
for tool in apt-get dpkg-deb xz tar; do
    command -v "$tool" >/dev/null || refuse "it needs $tool, as Debian and its relatives have it; or install Swift 6 (https://www.swift.org/install)"
done
[ -r "$keys" ] || refuse "it needs Debian's keys in $keys: install debian-archive-keyring"
mirror=${PFL_DEBIAN_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' |
    grep -E '/debian/?$' | sort -u | head -n 1 || true)}
[ -n "$mirror" ] || refuse "this machine's apt names no mirror of Debian: set PFL_DEBIAN_MIRROR to the address of one"

mkdir -p "$(dirname "$root")"
partial=$(mktemp -d "$root.partial.XXXXXX")
work=$(mktemp -d)
trap 'rm -rf "$work" "$partial"' EXIT
started=$SECONDS

# A world of apt's own: this machine's packages and lists are neither asked nor touched.
mkdir -p "$work"/{state/lists/partial,cache/archives/partial,source,none}
: >"$work/status"
for kind in deb deb-src; do
    echo "$kind [signed-by=$keys] $mirror $suite main"
done >"$work/sources.list"
cat >"$work/apt.conf" <<END
Dir::Etc::SourceList "$work/sources.list";
Dir::Etc::SourceParts "$work/none";
Dir::Etc::Preferences "$work/none/preferences";
Dir::Etc::PreferencesParts "$work/none";
Dir::State "$work/state";
Dir::State::Status "$work/status";
Dir::Cache "$work/cache";
Dir::Log "$work/none";
APT::Install-Recommends "false";
APT::Install-Suggests "false";
APT::Sandbox::User "";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::Retries "3";
Debug::NoLocking "true";
END
export APT_CONFIG=$work/apt.conf
apt-get update -qq
apt-get install -qq --yes --download-only "${packages[@]}" >/dev/null
(cd "$work/source" && apt-get source -qq --download-only --tar-only swiftlang >/dev/null)
downloaded=$SECONDS

# the folders that Debian has joined
for joined in bin sbin lib lib64; do
    mkdir -p "$partial/usr/$joined"
    ln -s "usr/$joined" "$partial/$joined"
done
# beside the packages, of which dpkg-deb unpacks each on one processor
(
    xz --decompress --stdout --threads=0 "$work"/source/*.orig.tar.xz |
        tar -x -C "$work/source" --no-same-owner --strip-components=1 --wildcards 'swiftlang-*/swift-crypto'
) &
source=$!
for package in "$work"/cache/archives/*.deb; do
    dpkg-deb --fsys-tarfile "$package" |
        tar -x -C "$partial" --no-same-owner --keep-directory-symlink "${left_out[@]/#/--exclude=}"
done
wait "$source"
mkdir -p "$partial"/{proc,dev,tmp,root,src,opt,etc}
chmod 1777 "$partial/tmp"
mv "$work/source/swift-crypto" "$partial/opt/swift-crypto"
echo 'root:x:0:0:root:/root:/bin/bash' >"$partial/etc/passwd"
echo 'root:x:0:' >"$partial/etc/group"
echo '127.0.0.1 localhost' >"$partial/etc/hosts"
echo "$made_by" >"$partial/etc/pfl-mobile"

# Whoever makes it at the same time makes the same.
chmod 755 "$partial"
rm -rf "$root"
mv -T "$partial" "$root" 2>/dev/null || [ "$(cat "$root/etc/pfl-mobile" 2>/dev/null || true)" = "$made_by" ]
echo "Swift in $root: downloaded in $((downloaded - started)) s, unpacked in $((SECONDS - downloaded)) s, $(du -sm "$root" | cut -f 1) MB"
