#if canImport(ExecuTorch)
    import PFLMobile

    /// Found by its name; see `EngineProvider`.
    final class LinkedEngine: EngineProvider {
        static var engine: any Engine { ExecuTorchEngine() }
    }
#endif
