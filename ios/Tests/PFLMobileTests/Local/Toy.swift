import Foundation

@testable import PFLMobile

private func floats(_ inputs: TensorSet, _ name: String) -> [Float] { inputs[name]?.float?.values ?? [] }

private func longs(_ inputs: TensorSet, _ name: String) -> [Int64] { inputs[name]?.long?.values ?? [] }

private func sum(_ value: Float) -> Tensor { .float(FloatTensor([value], [1])) }

/// The toy model of `conformance/README.md`; `calls` counts its programs' runs.
final class Toy: EngineSession, @unchecked Sendable {
    let name = "toy"
    let programs: [String: ProgramSpec]
    private(set) var calls = 0

    static let table = [trainedTensor("a", .shared, [2]), trainedTensor("b", .personal, [3])]

    init() {
        let all = [("x", [4, 2]), ("y", [4, 3]), ("weight", [4]), ("a", [2]), ("b", [3])].map {
            TensorSpec(name: $0, shape: $1, dtype: .float32)
        }
        programs = Dictionary(
            uniqueKeysWithValues: ["gradients", "evaluate"].map {
                ($0, ProgramSpec(name: $0, inputs: all, outputs: []))
            })
    }

    func run(_ program: String, _ inputs: TensorSet) -> TensorSet {
        calls += 1
        var loss: Float = 0
        var weightSum: Float = 0
        var grads: [String: [Float]] = ["a": [0, 0], "b": [0, 0, 0]]
        for (row, weight) in floats(inputs, "weight").enumerated() {
            weightSum += weight
            for (name, target) in [("a", floats(inputs, "x")), ("b", floats(inputs, "y"))] {
                let values = floats(inputs, name)
                for (i, theta) in values.enumerated() {
                    let d = theta - target[row * values.count + i]
                    let t = weight * d
                    grads[name]?[i] += t
                    loss += 0.5 * (t * d)
                }
            }
        }
        var out = ["loss_sum": sum(loss), "weight_sum": sum(weightSum)]
        if program == "gradients" {
            for (name, grad) in grads { out["grad.\(name)"] = .float(FloatTensor(grad, [grad.count])) }
        }
        return out
    }
}

private let length = 3
private let unknownId: Int64 = 2

/// The encoder of the word toy of `conformance/README.md`.
struct WordEncoder: ExampleEncoder {
    var words: [String] = []
    var unknown: Int { Int(unknownId) }
    private var known: [String] { ["see", "you", "home"] }

    func withWords(_ words: [String]) -> any ExampleEncoder { WordEncoder(words: words) }

    func withBlocked(_ blocked: BlockList) -> any ExampleEncoder { self }

    func chooseWords(_ texts: [String], minCount: Int) -> [String] {
        var counts: [String: Int] = [:]
        for word in texts.flatMap({ $0.split(separator: " ").map(String.init) }) { counts[word, default: 0] += 1 }
        let new = counts.filter { $0.value >= minCount && !known.contains($0.key) && !words.contains($0.key) }
        let ranked = new.sorted { $0.value == $1.value ? nameOrder($0.key, $1.key) : $0.value > $1.value }
        return Array((words + ranked.map(\.key)).prefix(2))
    }

    func encode(_ texts: [String], dropUnknown: Bool) -> Rows {
        var ids: [String: Int64] = [:]
        for (place, word) in (known + words).enumerated() { ids[word] = Int64(4 + place) }
        let rows: [[Int64]] = texts.map { text in
            Array(([1] + text.split(separator: " ").map { ids[String($0)] ?? unknownId } + [3]).prefix(length + 1))
        }
        func padded(_ row: ArraySlice<Int64>) -> [Int64] { row + [Int64](repeating: 0, count: length - row.count) }
        let labels = rows.flatMap { padded($0.dropFirst()) }
        let weight: [Float] = labels.map { $0 > 0 && !(dropUnknown && $0 == unknownId) ? 1 : 0 }
        let shape = [texts.count, length]
        return [
            "tokens": .long(LongTensor(rows.flatMap { padded($0.dropLast()) }, shape)),
            "labels": .long(LongTensor(labels, shape)), "weight": .float(FloatTensor(weight, shape)),
        ]
    }
}

/// The word toy of `conformance/README.md`.
final class WordToy: EngineSession {
    let name = "word toy"
    let programs: [String: ProgramSpec]

    init(_ table: [DeviceTensor]) {
        let batch = [("tokens", DType.int64), ("labels", .int64), ("weight", .float32)].map {
            TensorSpec(name: $0, shape: [4, length], dtype: $1)
        }
        let all = batch + table.map { TensorSpec(name: $0.name, shape: $0.shape, dtype: $0.dtype) }
        programs = Dictionary(
            uniqueKeysWithValues: ["gradients", "evaluate"].map {
                ($0, ProgramSpec(name: $0, inputs: all, outputs: []))
            })
    }

    func run(_ program: String, _ inputs: TensorSet) -> TensorSet {
        let e = floats(inputs, "e")
        let contexts = longs(inputs, "memory.context")
        let memory = Set(longs(inputs, "memory.next").enumerated().map { [$1, contexts[2 * $0]] })
        let labels = longs(inputs, "labels")
        let tokens = longs(inputs, "tokens")
        var loss: Float = 0
        var weightSum: Float = 0
        var top1: Float = 0
        var grad = [Float](repeating: 0, count: e.count)
        for (place, w) in floats(inputs, "weight").enumerated() {
            let label = Int(labels[place])
            var d = e[label] - 1
            if memory.contains([labels[place], tokens[place]]) { d = 0.5 * d }
            let t = w * d
            grad[label] += t
            loss += 0.5 * (t * d)
            weightSum += w
            if labels[place] != unknownId && e[label] > 0 { top1 += w }
        }
        var out = ["loss_sum": sum(loss), "weight_sum": sum(weightSum), "top1_sum": sum(top1)]
        if program == "gradients" { out["grad.e"] = .float(FloatTensor(grad, [grad.count])) }
        return out
    }
}
