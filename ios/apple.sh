#!/usr/bin/env bash
# ios/apple.sh  type-checks the Apple-only files on Linux, against stand-ins of Apple's modules (Tests/AppleStubs). It needs what
# `swift build` has built. What compiles here may still not compile against the real modules: only a Mac tells.
set -euo pipefail
ios=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$ios"
if [ "$(uname)" = Darwin ]; then exit; fi # the modules themselves are there
stubs=.build/apple-stubs
built=.build/debug/Modules
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

for module in Security Network UIKit BackgroundTasks; do stub "$module"; done
check PFLMobileSDK Sources/PFLMobileSDK/*.swift
