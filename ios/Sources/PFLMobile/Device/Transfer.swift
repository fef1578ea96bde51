import Foundation

// Downloads and uploads that go on where a connection broke.

private let chunk = 1 << 16
private let shownDigits = 12

/// Downloads a set of values to a file. It resumes what an earlier attempt left, even one that was killed.
///
/// - Parameters:
///   - what: address, size and digest
///   - path: of the file; it is there only once it is complete and its digest is right
/// - Throws: `.unreachable`: given up; what has arrived stays for the next time; `.serverProblem`: the aggregator refuses;
///   `.storageFull`, `.unwritable`: the disk
func download(_ client: Client, _ what: Download, to path: String) async throws {
    let part = "\(path).part"
    let files = AtomicFiles()
    func have() throws -> Int { try diskErrors(part) { try status(part).map { Int($0.st_size) } ?? 0 } }
    if what.bytes == 0 {
        _ = try diskErrors(part) { try OpenFile.open(part, O_WRONLY | O_CREAT | O_TRUNC) }
    }
    var tries = Tries(client, progress: try have())
    while true {
        do {
            if try have() > what.bytes { try files.delete(part) }
            let there = try have()
            if there < what.bytes { try await fetch(client, what, part, have: there) }
            if try have() < what.bytes {
                throw PFLError(.unreachable, "\(what.url) broke off", mend: "try again")
            }
            let digest = try fileDigest(part)
            if digest != what.sha256 {
                try files.delete(part)
                throw PFLError(
                    .unreachable,
                    "\(what.url) arrived with the digest \(digest.prefix(shownDigits))..., not "
                        + "\(what.sha256.prefix(shownDigits))...",
                    mend: "try again; if it stays so, something between changes the bytes")
            }
            break
        } catch let error as PFLError {
            try await tries.failed(error, progress: try have())
        }
    }
    try diskErrors(path) {
        try RealDisk().rename(part, path)
        try RealDisk().syncFolder(folder(of: path))
    }
}

private func fetch(_ client: Client, _ what: Download, _ part: String, have: Int) async throws {
    let headers = have > 0 ? ["If-Range": "\"\(what.sha256)\"", "Range": "bytes=\(have)-"] : [:]
    let arriving = Arriving(client, what, part, have: have)
    do {
        try await client.exchange("GET", what.url, headers: headers, arriving)
    } catch {
        try? arriving.end()
        throw error
    }
    try arriving.end()
}

/// Puts a body at the end of a file.
private final class Arriving: AnswerReader, @unchecked Sendable {
    private let client: Client
    private let what: Download
    private let part: String
    // Written in the calls of one exchange, which come one after the other, and read after its end.
    private var done: Int
    private var file: OpenFile?

    init(_ client: Client, _ what: Download, _ part: String, have: Int) {
        self.client = client
        self.what = what
        self.part = part
        done = have
    }

    func began(_ head: AnswerHead) throws {
        let wentOn = head.status == 206
        if wentOn, head.header("Content-Range")?.hasPrefix("bytes \(done)-") != true {
            throw PFLError(
                .protocol,
                "\(what.url) was asked for from byte \(done) on, the answer is "
                    + "'\((head.header("Content-Range") ?? "").prefix(shownDigits))'",
                mend: "check what lies between device and aggregator")
        }
        if !wentOn { done = 0 }
        file = try diskErrors(part) {
            try OpenFile.open(part, O_WRONLY | O_CREAT | (done > 0 ? O_APPEND : O_TRUNC))
        }
    }

    func piece(_ bytes: Data) throws {
        client.traffic.add(down: bytes.count)
        done += bytes.count
        // Before anything of it takes a place, on the disk too.
        if done > what.bytes {
            throw PFLError(
                .protocol, "\(what.url) has more than the \(what.bytes) bytes that the task says",
                mend: "check what lies between device and aggregator")
        }
        guard let file else { return }
        try diskErrors(part) { try RealDisk().write(file, Array(bytes)) }
    }

    func sent(_ bytes: Int) {}

    /// What has arrived outlives the process.
    func end() throws {
        guard let file else { return }
        try diskErrors(part) { try RealDisk().sync(file) }
    }
}

/// Digest of a file.
func fileDigest(_ path: String) throws -> String {
    try diskErrors(path) {
        let file = try OpenFile.open(path, O_RDONLY)
        var sha = Sha256()
        var buffer = [UInt8](repeating: 0, count: chunk)
        while true {
            let count = read(file.descriptor, &buffer, chunk)
            if count < 0 && errno == EINTR { continue }
            if count < 0 { throw SystemError.last(path) }
            if count == 0 { return hex(sha.bytes) }
            sha.add(buffer[..<count])
        }
    }
}

/// Sends an update; a part that arrived before stays and is not sent again.
///
/// - Parameters:
///   - url: of the task's update
///   - file: the update
///   - key: idempotency key, the same for every try
///   - resume: something may have been sent before (the process was started again)
/// - Returns: the aggregator's answer: accepted
/// - Throws: `.unreachable`: given up for now; `.serverProblem`: the aggregator refuses the update; `.deviceFolder`: the file
///   cannot be read
func upload(_ client: Client, _ url: String, file: String, key: String, resume: Bool = false) async throws
    -> UploadState
{
    let data: Data
    do {
        data = try map(file)
    } catch {
        throw DeviceFolder.unreadable(file, error)
    }
    let size = data.count
    var sent = 0  // what the aggregator has,
    var sure = !resume  // and whether that is known
    var tries = Tries(client)
    while true {
        do {
            if !sure {
                let (offset, complete) = try await received(client, url, key, size)
                sent = offset
                if complete {
                    let parts = url.split(separator: "/")
                    return UploadState(
                        status: .accepted, task: parts.dropLast().last.map(String.init) ?? "", received: size,
                        duplicate: true)
                }
            }
            sure = false  // until the answer is here
            let answer = try await put(client, url, data, key, from: sent)
            if answer.status == .partial {
                throw PFLError(.unreachable, "\(answer.received) of \(size) bytes arrived", mend: "try again")
            }
            return answer
        } catch let error as PFLError {
            try await tries.failed(error, progress: sent)
        }
    }
}

private func put(
    _ client: Client, _ url: String, _ data: Data, _ key: String, from sent: Int
) async throws -> UploadState {
    let headers = [
        "Content-Type": safetensorsType, "Idempotency-Key": key, "Upload-Offset": "\(sent)",
        "Upload-Length": "\(data.count)",
    ]
    let rest = sent == 0 ? data : data.subdata(in: sent..<data.count)
    let answer = WholeAnswer(client)
    do {
        try await client.exchange("PUT", url, headers: headers, body: rest, answer)
    } catch let problem as PFLError where problem.status != nil && problem.code.rawValue == "offset-mismatch" {
        throw PFLError(
            .unreachable, "the aggregator has another part of the update", mend: "try again", cause: problem)
    }
    return try parseAnswer(UploadState.self, answer.bytes, "PUT \(url)")
}

/// How many bytes of the update the aggregator has, and whether that is all. A task that is over answers an error without a body;
/// the upload is then tried from the beginning, which tells why.
private func received(
    _ client: Client, _ url: String, _ key: String, _ size: Int
) async throws -> (offset: Int, complete: Bool) {
    let answer = WholeAnswer(client)
    do {
        try await client.exchange("HEAD", url, headers: ["Idempotency-Key": key], answer)
    } catch let problem as PFLError where problem.isA(.serverProblem) && !problem.passing {
        return (0, false)
    }
    let offset = answer.head?.header("Upload-Offset") ?? "0"
    let isNumber = !offset.isEmpty && offset.utf8.allSatisfy { $0 >= 0x30 && $0 <= 0x39 }
    guard isNumber, let found = Int(offset), found <= size else {
        throw PFLError(
            .protocol, "the aggregator says that it has '\(offset.prefix(shownDigits))' of \(size) bytes",
            mend: "drop the update")
    }
    return (found, answer.head?.header("Upload-Complete") == "?1")
}
