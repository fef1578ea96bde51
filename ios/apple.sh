#!/usr/bin/env bash
# ios/apple.sh  type-checks the Apple-only files on Linux, against stand-ins of Apple's modules (Tests/AppleStubs). It needs what
# `PFL_APPLE_STUBS=1 ios/swift.sh build` has built. What compiles here may still not compile against the real modules: only a Mac tells.
set -euo pipefail
ios=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$ios"
if [ "$(uname)" = Darwin ]; then exit; fi # the modules themselves are there
stubs=.build/apple-stubs
built=.build/stubs/debug/Modules
flags=(-swift-version 6 -package-name ios -I "$stubs" -I "$built")
mkdir -p "$stubs"

stub() { # MODULE, from the files of its folder
    ./swift.sh swiftc -emit-module -parse-as-library "${flags[@]}" -module-name "$1" -emit-module-path "$stubs/$1.swiftmodule" \
        Tests/AppleStubs/"$1"/*.swift
}

check() { # MODULE FILES...
    local module=$1
    shift
    echo "type-checking $module against stand-ins"
    ./swift.sh swiftc -typecheck -parse-as-library -warnings-as-errors "${flags[@]}" -module-name "$module" "$@"
}

stub CryptoKit
echo "type-checking what PFLMobile does with CryptoKit"
files=()
for file in $(find Sources/PFLMobile -name '*.swift') "$built"/../PFLMobile.build/DerivedSources/*.swift; do
    if grep -q 'import CryptoKit' "$file"; then files+=(-primary-file); fi
    files+=("$file")
done
./swift.sh swiftc -frontend -typecheck -warnings-as-errors "${flags[@]}" -module-name PFLMobile "${files[@]}"
for module in Security Network UIKit BackgroundTasks SwiftUI; do stub "$module"; done
# what Apple-only files are added to a module is seen by those that come after it
./swift.sh swiftc -emit-module -parse-as-library -warnings-as-errors "${flags[@]}" -module-name PFLMobileSDK \
    -emit-module-path "$stubs/PFLMobileSDK.swiftmodule" Sources/PFLMobileSDK/*.swift
check App Keyboard/App/*.swift
check Extension Keyboard/App/Shared.swift Keyboard/Extension/*.swift
