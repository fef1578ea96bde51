// Takes words out of a personal state: their slots, their entries of the n-gram memory, and whatever holds either.
//
// What cannot be taken out is what gradients made of a word: values of LoRA and other trained tensors have no place that is this
// word's alone. `shippedAgain` gives them their shipped values again, to be trained anew without the word.

/// What forgetting did to the state that serves.
public struct Forgotten: Sendable, Equatable {
    /// As the keyboard cuts and folds them, in order.
    public let words: [String]
    /// Slots that were freed.
    public let slots: Int
    /// Entries of n-gram memories that were emptied.
    public let entries: Int
    /// Numbers of the saved versions, all of which were rewritten.
    public let versions: [Int]
    /// Whether values that gradients trained on the words are still there.
    public let trained: Bool
}

/// Forgets words in every saved version, and never learns them again.
///
/// The words go on the store's block list first, so a process killed on the way leaves nothing that learns them; repeating the
/// call finishes. Then a checkpoint is removed, and every version is rewritten in its place. Versions that are damaged, and
/// cannot be looked into, are removed.
///
/// - Parameters:
///   - given: words as the user writes them
///   - encoder: of the bundle, without words
///   - table: the bundle's device tensors
///   - initial: their shipped values
///   - retrain: also give every tensor that gradients train its shipped value and drop copies of them
/// - Throws: `.config`, see `wordsToForget`; `.state`: the state is of another model, or no version can be used, and nothing
///   changes; `.storageFull`: the disk is full, so call again once there is space
public func forget(
    _ store: PersonalStateStore, _ given: [String], encoder: TextEncoder, table: [DeviceTensor], initial: TensorSet,
    retrain: Bool = false
) throws -> Forgotten {
    let words = try wordsToForget(given, rules: encoder.tokenizer.rules)
    let ids = WordIds(encoder)
    let serving = try store.load().state
    try store.block(words)
    let (slots, entries) = try serving.map { try countForgotten($0, words, ids, table) } ?? (0, 0)
    let versions = try store.rewrite { state in
        let cleaned = try forgetWords(state, words, ids, table, initial)
        return retrain ? shippedAgain(cleaned, table, initial) : cleaned
    }
    return Forgotten(
        words: words, slots: slots, entries: entries, versions: versions, trained: !versions.isEmpty && !retrain)
}

/// The words as the keyboard knows them: `Kestrel_77!` is `kestrel` and `77`; symbols beside words stay.
///
/// - Parameter rules: by which the keyboard cuts
/// - Throws: `.config`: there is no word, or one has a space in it: several words are to be given one by one, as each is
///   forgotten wherever it stands
public func wordsToForget(_ given: [String], rules: PieceRules = .newest) throws -> [String] {
    var found: [String] = []
    var seen: Set<Exact> = []
    for text in given {
        let inner = text.drop(while: \.isWhitespace).reversed().drop(while: \.isWhitespace)
        if inner.contains(where: \.isWhitespace) {
            throw PFLError(
                .config, "'\(text)' is several words",
                mend: "give them one by one; each is forgotten wherever it stands")
        }
        let pieces = rules.cut(text)
        if pieces.isEmpty {
            throw PFLError(.config, "'\(text)' is no word", mend: "give a word as the keyboard shows it")
        }
        let words = pieces.filter { !rules.isSymbol($0) }
        for word in words.isEmpty ? pieces : words where seen.insert(Exact(word)).inserted { found.append(word) }
    }
    if found.isEmpty { throw PFLError(.config, "no word was given", mend: "give at least one") }
    return found
}

/// Which ids stand for words.
struct WordIds {
    /// Ids of the base words and specials; the slots' ids follow.
    let vocabulary: Int64
    private let encoder: TextEncoder

    init(_ encoder: TextEncoder) {
        self.encoder = encoder
        vocabulary = Int64(encoder.vocabulary)
    }

    /// Ids of the base vocabulary that stand for any of some words. Of subwords every one that spells a word, though it may be in
    /// other words too: rather too much than too little.
    func base(_ words: [String]) throws -> Set<Int64> {
        if let tokenizer = encoder.tokenizer as? SubwordTokenizer {
            return Set(try tokenizer.spellings(words).subtracting([encoder.unknown]).map(Int64.init))
        }
        let specials = encoder.tokenizer.specials
        let ids = Set(words.map(encoder.tokenizer.id))
        return Set(ids.subtracting([specials.pad, specials.bos, specials.eos, specials.unk]).map(Int64.init))
    }
}

/// Whether a word, or a part of it between apostrophes (`greta's`), is one of those forgotten.
func isForgotten(_ word: String, _ forgotten: [String]) -> Bool {
    let forgotten = Set(forgotten.map(Exact.init))
    return forgotten.contains(Exact(word))
        || word.unicodeScalars.split(separator: "'").contains { forgotten.contains(Exact(String($0))) }
}

/// Ids that stand for a forgotten word: of the base vocabulary, and of the slots of this state.
private func forgottenIds(_ state: PersonalState, _ words: [String], _ ids: WordIds) throws -> Set<Int64> {
    let slots = state.words.indices.filter { isForgotten(state.words[$0], words) }
    return try ids.base(words).union(slots.map { ids.vocabulary + Int64($0) })
}

/// The tensors of each memory, by name.
private func memories(_ tensors: TensorSet, _ table: [DeviceTensor]) -> [[String: LongTensor]] {
    let parts = Dictionary(grouping: table.filter { $0.update == .memorize }, by: \.module)
    return parts.values.map { group in
        var found: [String: LongTensor] = [:]
        for part in group { found[part.name] = tensors[part.name]?.long }
        return found
    }
}

private func width(_ size: Int, _ shape: [Int]) -> Int { max(size / max(shape.first ?? 1, 1), 1) }

/// Entries of a memory that hold one of the ids anywhere, by their place.
private func touched(_ memory: [String: LongTensor], _ ids: Set<Int64>) -> Set<Int> {
    var found: Set<Int> = []
    for tensor in memory.values {
        let width = width(tensor.size, tensor.shape)
        for (place, id) in tensor.values.enumerated() where ids.contains(id) { found.insert(place / width) }
    }
    return found
}

/// The state without the words, as they are cut and folded. The slots behind a freed one move up, with their rows in every tensor
/// and copy and their ids in the memory; the rows that become free get shipped values. An entry of a memory that has a forgotten
/// id in it, as the word or in its context, becomes empty. Every other value stays bit for bit.
///
/// - Throws: `.tensorMismatch`: a shipped value is missing or of another shape
func forgetWords(
    _ state: PersonalState, _ words: [String], _ ids: WordIds, _ table: [DeviceTensor], _ initial: TensorSet
) throws -> PersonalState {
    let kept = state.words.indices.filter { !isForgotten(state.words[$0], words) }
    let freed = state.words.count - kept.count
    let gone = try forgottenIds(state, words, ids)
    var moved: [Int64: Int64] = [:]
    for (new, old) in kept.enumerated() where new != old {
        moved[ids.vocabulary + Int64(old)] = ids.vocabulary + Int64(new)
    }
    var found = state
    found.words = kept.map { state.words[$0] }
    if !gone.isEmpty {
        for memory in memories(state.tensors, table) {
            let empty = touched(memory, gone)
            for (name, tensor) in memory { found.tensors[name] = .long(cleaned(tensor, empty, moved)) }
        }
    }
    if freed == 0 { return found }
    let slotModules = Set(table.filter { $0.update == .assign }.map(\.module))
    for tensor in table where slotModules.contains(tensor.module) && state.tensors[tensor.name] != nil {
        if tensor.update == .assign {
            found.tensors[tensor.name] = .float(active(kept.count, tensor.shape.first ?? 0))
            continue
        }
        guard let shipped = initial[tensor.name]?.float, shipped.shape == tensor.shape else {
            throw PFLError(
                .tensorMismatch, "there is no shipped value of '\(tensor.name)'", mend: "take those of the bundle")
        }
        if let rows = found.tensors[tensor.name]?.float {
            found.tensors[tensor.name] = .float(movedUp(rows, kept, freed, shipped))
        }
        for copy in found.copies.keys {
            if let rows = found.copies[copy]?[tensor.name]?.float {
                found.copies[copy]?[tensor.name] = .float(movedUp(rows, kept, freed, shipped))
            }
        }
    }
    return found
}

private func cleaned(_ tensor: LongTensor, _ empty: Set<Int>, _ moved: [Int64: Int64]) -> LongTensor {
    let width = width(tensor.size, tensor.shape)
    var found = tensor
    for (place, id) in tensor.values.enumerated() {
        found.values[place] = empty.contains(place / width) ? 0 : moved[id] ?? id
    }
    return found
}

/// Rows of the kept slots, then of those that were free before, then shipped ones for those freed now.
private func movedUp(_ rows: FloatTensor, _ kept: [Int], _ freed: Int, _ shipped: FloatTensor) -> FloatTensor {
    let count = rows.shape.first ?? 0
    let width = width(rows.size, rows.shape)
    var values: [Float] = []
    for row in kept + (kept.count + freed..<max(count, kept.count + freed)) {
        values += rows.values[row * width..<(row + 1) * width]
    }
    values += shipped.values[(count - freed) * width..<count * width]
    return FloatTensor(values, rows.shape)
}

/// The state with the shipped values of all tensors that gradients train, and without copies of them.
func shippedAgain(_ state: PersonalState, _ table: [DeviceTensor], _ initial: TensorSet) -> PersonalState {
    var tensors = state.tensors
    for tensor in table where tensor.update == .gradient { tensors[tensor.name] = initial[tensor.name] }
    return PersonalState(tensors: tensors, words: state.words)
}

/// How many slots of a state have one of the words, and how many entries of its memories hold one.
func countForgotten(
    _ state: PersonalState, _ words: [String], _ ids: WordIds, _ table: [DeviceTensor]
) throws -> (slots: Int, entries: Int) {
    let gone = try forgottenIds(state, words, ids)
    let entries = memories(state.tensors, table).reduce(0) { $0 + touched($1, gone).count }
    return (state.words.count { isForgotten($0, words) }, entries)
}
