import Foundation

/// A moment, by clocks of which one may be set.
struct Moment: Sendable, Equatable {
    /// Seconds since 1970, as the device believes.
    var wall: Double
    /// Seconds since the device started, sleep included.
    var sinceBoot: Double
    /// Tells one start from another; 0 where the system does not say.
    var boot: UInt64

    /// The present moment.
    @Sendable static func now() -> Moment {
        var time = timespec()
        #if canImport(Darwin)
            // Goes on while the device sleeps there.
            clock_gettime(CLOCK_MONOTONIC, &time)
        #else
            clock_gettime(CLOCK_BOOTTIME, &time)
        #endif
        return Moment(
            wall: Date().timeIntervalSince1970, sinceBoot: Double(time.tv_sec) + Double(time.tv_nsec) * 1e-9,
            boot: Moment.start)
    }

    private static let start: UInt64 = {
        var name = ""
        #if canImport(Darwin)
            var bytes = [CChar](repeating: 0, count: 64)
            var size = bytes.count
            if sysctlbyname("kern.bootsessionuuid", &bytes, &size, nil, 0) == 0 { name = String(cString: bytes) }
        #else
            // A file of no length, so it is read by lines.
            name = (try? String(contentsOfFile: "/proc/sys/kernel/random/boot_id", encoding: .utf8)) ?? ""
        #endif
        if name.isEmpty { return 0 }
        var sha = Sha256()
        sha.add(name)
        return sha.bytes.prefix(8).reduce(0) { $0 << 8 | UInt64($1) }
    }()
}
