// swift-tools-version: 6.0
import Foundation
import PackageDescription

// PFL_SWIFT_CRYPTO: a folder with swift-crypto, where it is not to be downloaded.
// PFL_STRICT: warnings are errors; not the default, as packages with such flags cannot be depended on.
let environment = Context.environment

#if os(Linux)
    let crypto: [Target.Dependency] = [.product(name: "Crypto", package: "swift-crypto")]
    let packages: [Package.Dependency] = [
        environment["PFL_SWIFT_CRYPTO"].map { .package(name: "swift-crypto", path: $0) }
            ?? .package(url: "https://github.com/apple/swift-crypto.git", from: "3.0.0")
    ]
#else
    let crypto: [Target.Dependency] = []
    let packages: [Package.Dependency] = []
#endif

let settings: [SwiftSetting] = environment["PFL_STRICT"] == nil ? [] : [.unsafeFlags(["-warnings-as-errors"])]

// ONNX Runtime's C headers, as Debian's libonnxruntime-dev puts them. Without them the package is built without that engine.
let hasOnnxRuntime = FileManager.default.fileExists(atPath: "/usr/include/onnxruntime/onnxruntime_c_api.h")
let onnxRuntime: [Target] =
    hasOnnxRuntime
    ? [
        .systemLibrary(name: "COnnxRuntime", pkgConfig: "libonnxruntime"),
        .target(name: "PFLOnnxRuntime", dependencies: ["COnnxRuntime", "PFLMobile"], swiftSettings: settings),
        .testTarget(
            name: "PFLOnnxRuntimeTests", dependencies: ["PFLMobile", "PFLOnnxRuntime"], swiftSettings: settings),
        // For tests only; no product.
        .executableTarget(
            name: "pfl-swift-device", dependencies: ["PFLMobile", "PFLOnnxRuntime"], path: "Tests/pfl-swift-device",
            swiftSettings: settings),
    ] : []
let onnxRuntimeProducts: [Product] =
    hasOnnxRuntime ? [.library(name: "PFLOnnxRuntime", targets: ["PFLOnnxRuntime"])] : []

let package = Package(
    name: "PFLMobile",
    platforms: [.iOS(.v16), .macOS(.v13)],
    products: [.library(name: "PFLMobile", targets: ["PFLMobile"])] + onnxRuntimeProducts,
    dependencies: packages,
    targets: [
        .target(
            name: "PFLMobile", dependencies: crypto,
            // A link to the file that every language reads; as code, so that an app has no resource bundle to lose.
            resources: [.embedInCode("Resources/unicode.json")], swiftSettings: settings),
        .testTarget(name: "PFLMobileTests", dependencies: ["PFLMobile"], swiftSettings: settings),
    ] + onnxRuntime,
    swiftLanguageModes: [.v6]
)
