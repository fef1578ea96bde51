import Foundation

/// Tells which engine a module brings. A module that is linked into the app is found by the name of its class `LinkedEngine`, so that
/// `PersonalModel.open` needs not be told.
public protocol EngineProvider: AnyObject {
    /// The engine as most apps want it.
    static var engine: any Engine { get }
}

/// The engines that are linked into this program, the one that apps on a phone should prefer first.
///
/// - Parameter modules: where to look
public func linkedEngines(_ modules: [String] = ["PFLCoreML", "PFLExecuTorch", "PFLOnnxRuntime"]) -> [any Engine] {
    modules.compactMap { (NSClassFromString("\($0).LinkedEngine") as? any EngineProvider.Type)?.engine }
}
