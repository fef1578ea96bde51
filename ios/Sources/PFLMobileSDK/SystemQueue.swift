#if canImport(BackgroundTasks) && canImport(UIKit)
    import BackgroundTasks
    import Foundation
    import PFLMobile

    /// `BGTaskScheduler`, with processing tasks: the system begins them when the phone is not used, and gives them minutes.
    @available(iOSApplicationExtension, unavailable)
    struct SystemQueue: BackgroundQueue {
        func register(_ identifier: String, _ begin: @escaping @Sendable (any BackgroundJob) -> Void) -> Bool {
            BGTaskScheduler.shared.register(forTaskWithIdentifier: identifier, using: nil) {
                begin(SystemJob(task: $0))
            }
        }

        func submit(_ identifier: String, earliest: Date, power: Bool, network: Bool) throws {
            let request = BGProcessingTaskRequest(identifier: identifier)
            request.earliestBeginDate = earliest
            request.requiresExternalPower = power
            request.requiresNetworkConnectivity = network
            try BGTaskScheduler.shared.submit(request)
        }

        func cancel(_ identifier: String) { BGTaskScheduler.shared.cancel(taskRequestWithIdentifier: identifier) }
    }

    /// The system's object may be told of an end from any thread, and is told once.
    private struct SystemJob: BackgroundJob, @unchecked Sendable {
        let task: BGTask

        func onExpiration(_ stop: @escaping @Sendable () -> Void) { task.expirationHandler = stop }

        func complete(success: Bool) { task.setTaskCompleted(success: success) }
    }

    @available(iOSApplicationExtension, unavailable)
    extension SystemQueue {
        /// Where the app's schedules lie; the model's folder may be shared, they are the app's.
        static var schedules: URL {
            let support = FileManager.default.urls(for: .applicationSupportDirectory, in: .userDomainMask).first
            return (support ?? FileManager.default.temporaryDirectory).appendingPathComponent("pfl-jobs")
        }
    }

    @available(iOSApplicationExtension, unavailable)
    extension PersonalizationScheduler {
        /// The schedule of one model in the system's queue.
        ///
        /// - Parameters:
        ///   - identifier: as the app's Info.plist permits it
        ///   - openWith: how a job opens the model, in a new process perhaps
        public convenience init(identifier: String, openWith: @escaping @Sendable () async throws -> PersonalModel) {
            self.init(
                identifier, openWith: openWith, queue: SystemQueue(), schedules: SystemQueue.schedules,
                conditions: { await DeviceConditions.now() })
        }
    }

    @available(iOSApplicationExtension, unavailable)
    extension RoundsScheduler {
        /// The schedule of one model in the system's queue.
        ///
        /// - Parameters:
        ///   - identifier: as the app's Info.plist permits it; another one than that of the training
        ///   - openWith: how a job opens the model, in a new process perhaps
        ///   - federationWith: how a job finds the federation; nil where the user takes part no more: nobody is asked then
        public convenience init(
            identifier: String, openWith: @escaping @Sendable () async throws -> PersonalModel,
            federationWith: @escaping @Sendable () async throws -> Federation?
        ) {
            self.init(
                identifier, openWith: openWith, federationWith: federationWith, queue: SystemQueue(),
                schedules: SystemQueue.schedules, conditions: { await DeviceConditions.now() })
        }
    }
#endif
