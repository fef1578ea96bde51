#if canImport(UIKit) && canImport(Network)
    import Foundation
    import Network
    import UIKit

    // An extension has no application to ask.
    @available(iOSApplicationExtension, unavailable)
    extension DeviceConditions {
        /// As the system says it.
        public static func now() async -> DeviceConditions {
            let (charging, percent, inUse) = await battery()
            return DeviceConditions(
                isCharging: charging, batteryPercent: percent, isInUse: inUse, isUnmetered: await isUnmetered(),
                isHot: [.serious, .critical].contains(ProcessInfo.processInfo.thermalState),
                isLowPower: ProcessInfo.processInfo.isLowPowerModeEnabled, freeBytes: freeBytes())
        }

        @MainActor private static func battery() -> (charging: Bool, percent: Int?, inUse: Bool) {
            let device = UIDevice.current
            device.isBatteryMonitoringEnabled = true
            let plugged = device.batteryState == .charging || device.batteryState == .full
            let level = device.batteryLevel
            return (plugged, level < 0 ? nil : Int(level * 100), UIApplication.shared.applicationState == .active)
        }

        /// The system tells the path of this moment first, and changes later.
        private static func isUnmetered() async -> Bool {
            let monitor = NWPathMonitor()
            let paths = AsyncStream<Bool> { stream in
                monitor.pathUpdateHandler = { path in
                    stream.yield(path.status == .satisfied && !path.isExpensive && !path.isConstrained)
                }
                stream.onTermination = { _ in monitor.cancel() }
                monitor.start(queue: DispatchQueue(label: "pfl-mobile.network"))
            }
            for await unmetered in paths { return unmetered }
            return false
        }

        private static func freeBytes() -> Int? {
            let home = URL(fileURLWithPath: NSHomeDirectory())
            let values = try? home.resourceValues(forKeys: [.volumeAvailableCapacityForImportantUsageKey])
            return values?.volumeAvailableCapacityForImportantUsage.map { Int($0) }
        }
    }
#endif
