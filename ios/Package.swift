// swift-tools-version: 6.0
import Foundation
import PackageDescription

// PFL_SWIFT_CRYPTO: a folder with swift-crypto, where it is not to be downloaded.
// PFL_APPLE_STUBS: Apple-only files are compiled and tested against stand-ins of Apple's modules (Tests/AppleStubs).
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
        .executableTarget(
            name: "pfl-memory", dependencies: ["PFLMobile", "PFLOnnxRuntime"], path: "Tests/Memory",
            swiftSettings: settings),
        .executableTarget(
            name: "pfl-scenario", dependencies: ["PFLMobile", "PFLOnnxRuntime"], path: "Tests/Scenarios",
            swiftSettings: settings),
        .testTarget(
            name: "PFLOnnxRuntimeTests", dependencies: ["PFLMobile", "PFLOnnxRuntime", "pfl-scenario"],
            swiftSettings: settings),
        // As pfl-scenario, for tests only: no product.
        .executableTarget(
            name: "pfl-swift-device", dependencies: ["PFLMobile", "PFLOnnxRuntime"], path: "Tests/pfl-swift-device",
            swiftSettings: settings),
    ] : []
let onnxRuntimeProducts: [Product] =
    hasOnnxRuntime ? [.library(name: "PFLOnnxRuntime", targets: ["PFLOnnxRuntime"])] : []

// PFL_EXECUTORCH: a branch of ExecuTorch's own Swift package, for instance swiftpm-1.0.0; it is large, and most apps need one
// engine.
let branch = environment["PFL_EXECUTORCH"]
let execuTorchPackage: [Package.Dependency] =
    branch.map { [.package(url: "https://github.com/pytorch/executorch.git", branch: $0)] } ?? []

// On Apple's systems the modules themselves are there, and Core ML itself is asked; elsewhere those tests are compiled.
#if os(Linux)
    let hasStubs = environment["PFL_APPLE_STUBS"] != nil
    let macTests = hasStubs
#else
    let hasStubs = false
    let macTests = true
#endif
var coreML: [Target.Dependency] = ["PFLMobile"]
var execuTorch: [Target.Dependency] = ["PFLMobile"]
if branch != nil { execuTorch.append(.product(name: "executorch", package: "executorch")) }
var appleTests: [Target] = []
if hasStubs {
    coreML.append("CoreML")
    execuTorch.append("ExecuTorch")
    var coreMLTests: [Target.Dependency] = ["CoreML", "PFLCoreML", "PFLMobile"]
    if hasOnnxRuntime { coreMLTests.append("PFLOnnxRuntime") }
    appleTests = [
        .target(name: "CoreML", path: "Tests/AppleStubs/CoreML"),
        .target(name: "ExecuTorch", path: "Tests/AppleStubs/ExecuTorch"),
        .testTarget(name: "PFLCoreMLTests", dependencies: coreMLTests, swiftSettings: settings),
        .testTarget(
            name: "PFLExecuTorchTests", dependencies: ["ExecuTorch", "PFLExecuTorch", "PFLMobile"],
            swiftSettings: settings),
    ]
}

if macTests {
    appleTests.append(
        .testTarget(name: "PFLCoreMLMacTests", dependencies: ["PFLCoreML", "PFLMobile"], swiftSettings: settings))
}

let engineOfTests: [Target.Dependency] = hasOnnxRuntime ? ["PFLOnnxRuntime"] : []

let products: [Product] = [
    .library(name: "PFLMobile", targets: ["PFLMobile"]),
    .library(name: "PFLMobileSDK", targets: ["PFLMobileSDK"]),
    .library(name: "PFLKeyboard", targets: ["PFLKeyboard"]),
    .library(name: "PFLCoreML", targets: ["PFLCoreML"]),
    .library(name: "PFLExecuTorch", targets: ["PFLExecuTorch"]),
]

let targets: [Target] = [
    .target(
        name: "PFLMobile", dependencies: crypto,
        // A link to the file that every language reads; as code, so that an app has no resource bundle to lose.
        resources: [.embedInCode("Resources/unicode.json")], swiftSettings: settings),
    .testTarget(name: "PFLMobileTests", dependencies: ["PFLMobile"], swiftSettings: settings),
    .target(name: "PFLMobileSDK", dependencies: ["PFLMobile"], swiftSettings: settings),
    .testTarget(
        name: "PFLMobileSDKTests", dependencies: ["PFLMobile", "PFLMobileSDK"] + engineOfTests, swiftSettings: settings),
    // The sample keyboard, apart from what Apple's modules draw.
    .target(
        name: "PFLKeyboard", dependencies: ["PFLMobile", "PFLMobileSDK"], path: "Keyboard/Logic",
        swiftSettings: settings),
    .testTarget(
        name: "PFLKeyboardTests", dependencies: ["PFLKeyboard", "PFLMobile", "PFLMobileSDK"] + engineOfTests,
        path: "Keyboard/Tests",
        swiftSettings: settings),
    // Empty where Core ML is not.
    .target(name: "PFLCoreML", dependencies: coreML, swiftSettings: settings),
    // Empty without PFL_EXECUTORCH.
    .target(name: "PFLExecuTorch", dependencies: execuTorch, swiftSettings: settings),
]

let package = Package(
    name: "PFLMobile",
    platforms: [.iOS(.v16), .macOS(.v13)],
    products: products + onnxRuntimeProducts,
    dependencies: packages + execuTorchPackage,
    targets: targets + onnxRuntime + appleTests,
    swiftLanguageModes: [.v6]
)
