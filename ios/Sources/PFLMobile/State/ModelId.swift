/// Which model a personal state belongs to.
public struct ModelId: Sendable, Equatable {
    /// Name of the bundle.
    public let name: String
    /// Version of the bundle.
    public let version: String
    /// sha256 of the tensor table and of the frozen weights, see `init(name:version:tensors:frozenSha256:)`.
    public let fingerprint: String

    /// An id as it was stored.
    public init(name: String, version: String, fingerprint: String) {
        self.name = name
        self.version = version
        self.fingerprint = fingerprint
    }

    /// The id of the bundle of a manifest.
    public init(_ manifest: Manifest) {
        self.init(
            name: manifest.name, version: manifest.version, tensors: manifest.tensors,
            frozenSha256: manifest.frozenSha256)
    }

    /// The id of a bundle: the fingerprint is over lines `name<TAB>role<TAB>update<TAB>dtype<TAB>2,3`, in order of name, each
    /// ended by a newline, in UTF-8; then the manifest's digest of the frozen weights where it has one, so that a state of
    /// other frozen weights is refused even when the version was not raised.
    public init(name: String, version: String, tensors: [DeviceTensor], frozenSha256: String? = nil) {
        let lines = tensors.map { tensor in
            let shape = tensor.shape.map(String.init).joined(separator: ",")
            return [tensor.name, tensor.role.rawValue, tensor.update.rawValue, tensor.dtype.rawValue, shape]
                .joined(separator: "\t") + "\n"
        }
        let text = lines.sorted(by: nameOrder).joined() + (frozenSha256 ?? "")
        self.init(name: name, version: version, fingerprint: Sha256.hex(text))
    }
}
