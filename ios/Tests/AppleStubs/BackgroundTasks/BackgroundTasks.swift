// A stand-in for tests, not Apple's framework: see the README beside it.
import Dispatch
import Foundation

public class BGTask: @unchecked Sendable {
    public var identifier: String { "" }
    public var expirationHandler: (() -> Void)?
    public func setTaskCompleted(success: Bool) {}
}

public class BGTaskRequest {
    public let identifier: String
    public var earliestBeginDate: Date?
    init(_ identifier: String) { self.identifier = identifier }
}

public class BGProcessingTaskRequest: BGTaskRequest {
    public init(identifier: String) { super.init(identifier) }
    public var requiresExternalPower = false
    public var requiresNetworkConnectivity = false
}

public class BGTaskScheduler: @unchecked Sendable {
    public class var shared: BGTaskScheduler { BGTaskScheduler() }

    public func register(
        forTaskWithIdentifier identifier: String, using queue: DispatchQueue?, launchHandler: @escaping (BGTask) -> Void
    ) -> Bool { false }

    public func submit(_ taskRequest: BGTaskRequest) throws {}
    public func cancel(taskRequestWithIdentifier identifier: String) {}
}
