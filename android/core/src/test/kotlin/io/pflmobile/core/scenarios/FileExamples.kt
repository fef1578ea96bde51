package io.pflmobile.core.scenarios

import io.pflmobile.core.local.Example
import io.pflmobile.core.local.ExampleStore
import io.pflmobile.core.local.Payload
import java.nio.file.Path
import java.util.Base64
import kotlin.io.path.exists
import kotlin.io.path.readLines
import kotlin.io.path.writeLines

/** Examples in a file of lines, where Android has its database. */
internal class FileExamples(
    private val file: Path,
) : ExampleStore {
    private val all: MutableList<Example> = if (file.exists()) file.readLines().mapTo(ArrayList(), ::parse) else ArrayList()
    private var next = (all.maxOfOrNull { it.id } ?: 0) + 1

    override fun add(payload: Payload): Long {
        all += Example(next, 0.0, payload)
        write()
        return next++
    }

    override fun examples(newest: Int?): List<Example> = if (newest == null) all.toList() else all.takeLast(newest)

    override fun count(): Int = all.size

    override fun erase(ids: Collection<Long>): Int {
        val before = all.size
        all.removeAll { it.id in ids }
        write()
        return before - all.size
    }

    override fun eraseAll(): Int = erase(all.map { it.id })

    override fun close() = Unit

    private fun write() {
        file.writeLines(all.map { "${it.id} ${it.payload.kind} ${Base64.getEncoder().encodeToString(it.payload.encode())}" })
    }

    private fun parse(line: String): Example {
        val (id, kind, data) = line.split(' ')
        return Example(id.toLong(), 0.0, Payload.decode(kind, Base64.getDecoder().decode(data)))
    }
}
