import Testing

@testable import PFLMobile

extension JSON {
    /// A table of tensors, as the vectors write it.
    var table: [DeviceTensor] {
        get throws {
            try items.map { row in
                DeviceTensor(
                    name: try row["name"].text, role: try Fields.word(Role.self)(row["role"], "role"), group: nil,
                    shape: try row["shape"].items.map { try $0.int },
                    dtype: try Fields.word(DType.self)(row["dtype"], "dtype"),
                    update: try Fields.word(TensorUpdate.self)(row["update"], "update"),
                    module: try row["module"].string)
            }
        }
    }
}

/// A float32 tensor that gradients train.
func trainedTensor(_ name: String, _ role: Role, _ shape: [Int], module: String? = "m") -> DeviceTensor {
    DeviceTensor(name: name, role: role, group: nil, shape: shape, dtype: .float32, update: .gradient, module: module)
}
