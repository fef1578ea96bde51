// A stand-in for tests, not Apple's framework: see the README beside it.
@_exported import Foundation

extension ProcessInfo {
    public enum ThermalState: Int, Sendable {
        case nominal, fair, serious, critical
    }

    public var thermalState: ThermalState { .nominal }
    public var isLowPowerModeEnabled: Bool { false }
}

extension URLResourceValues {
    public var volumeAvailableCapacityForImportantUsage: Int64? { nil }
}

extension URLResourceKey {
    public static let volumeAvailableCapacityForImportantUsageKey = URLResourceKey(rawValue: "")
}

@MainActor public class UIDevice {
    public enum BatteryState: Int, Sendable {
        case unknown, unplugged, charging, full
    }

    public class var current: UIDevice { UIDevice() }
    public var isBatteryMonitoringEnabled = false
    public var batteryState: BatteryState { .unknown }
    public var batteryLevel: Float { -1 }
}

@MainActor public class UIApplication {
    public enum State: Int, Sendable {
        case active, inactive, background
    }

    public class var shared: UIApplication { UIApplication() }
    public var applicationState: State { .active }
}
