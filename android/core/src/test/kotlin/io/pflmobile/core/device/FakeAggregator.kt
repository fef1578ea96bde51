package io.pflmobile.core.device

import io.pflmobile.core.files.Safetensors
import io.pflmobile.core.files.hex
import io.pflmobile.core.files.parseJson
import io.pflmobile.core.plan.UpdateLayout
import io.pflmobile.core.protocol.UpdateFile
import io.pflmobile.core.protocol.UpdateHead
import io.pflmobile.core.state.ModelId
import io.pflmobile.core.tensors.FloatTensor
import kotlinx.serialization.json.JsonElement
import mockwebserver3.Dispatcher
import mockwebserver3.MockResponse
import mockwebserver3.RecordedRequest
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.security.MessageDigest
import java.util.concurrent.CopyOnWriteArrayList

/** A federation of one round after another, for the toy model by default; it can be told what to answer, and keeps everything it is sent. */
internal class FakeAggregator(
    private val model: ModelId,
    private val rounds: Int = 1,
    global: Map<String, FloatTensor> = mapOf("a" to FloatTensor(floatArrayOf(0.1f, -0.1f), listOf(2))),
) : Dispatcher() {
    var privacy = PRIVATE
    var plan = PLAN
    var layout = global.toSortedMap().entries.joinToString(", ", "[", "]") { """{"name": "${it.key}", "shape": ${it.value.shape}}""" }
    var reports = "[]"
    var attestation = "[]"
    var expiresInS = 60.0
    var device = "d".repeat(32)

    /** Answers instead of its own, by method and a part of the path; null for its own. */
    @Volatile
    var instead: (RecordedRequest) -> MockResponse? = { null }

    val requests = CopyOnWriteArrayList<String>()
    val bodies = CopyOnWriteArrayList<Pair<String, JsonElement>>()
    val updates = LinkedHashMap<String, ByteArray>()
    val declined = ArrayList<String>()
    private var round = 0
    private val values = Safetensors.write(global)
    private val digest = hex(MessageDigest.getInstance("SHA-256").digest(values))

    val bundle = """{"name": "${model.name}", "version": "${model.version}", "fingerprint": "${model.fingerprint}"}"""

    fun task(number: Int) = "$number".padStart(32, '0')

    /** Head and values of the update of a round. */
    fun update(number: Int): Pair<UpdateHead, FloatArray> {
        val data = updates.getValue(task(number))
        val layout = UpdateLayout(mapOf("a" to listOf(2)))
        val (head, offset) = UpdateFile.parsePrefix(data, layout, data.size.toLong())
        val buffer = ByteBuffer.wrap(data).order(ByteOrder.LITTLE_ENDIAN)
        return head to FloatArray(2) { buffer.getFloat(offset + 4 * it) }
    }

    /** What was sent to a path. */
    fun sent(path: String): List<JsonElement> = bodies.filter { it.first.endsWith(path) }.map { it.second }

    override fun dispatch(request: RecordedRequest): MockResponse =
        synchronized(this) {
            val (method, path) = request.method to request.target
            requests += "$method $path"
            instead(request)?.let { return it }
            val body = request.body
            if (method == "POST" && body != null && body.size > 0) bodies += path to parseJson(body.toByteArray())
            val id = path.split('/').getOrNull(3).orEmpty()
            val answer =
                when {
                    path == "/v1/federation" -> answer(federation())
                    path == "/v1/challenges" -> answer("""{"challenge": "c1", "expires": 9e9}""")
                    path == "/v1/devices" -> answer("""{"device": "$device", "credential": "secret"}""", 201)
                    request.headers["Authorization"] != "Bearer secret" -> problem("unauthorized", 401)
                    path == "/v1/devices/me" -> answer("", 204)
                    path == "/v1/check-in" -> answer(checkIn())
                    path == "/v1/versions/latest" -> answer(latest())
                    path == "/v1/sets/$digest" -> answer(values)
                    method == "HEAD" -> answer("", 200, "Upload-Offset" to "0", "Upload-Complete" to if (id in updates) "?1" else "?0")
                    method == "PUT" -> put(id, request)
                    path.endsWith("/evaluation") -> answer("{}")
                    path.endsWith("/decline") -> answer("{}").also { next(id) }
                    else -> problem("not-found", 404)
                }
            answer.build()
        }

    private fun next(id: String) {
        declined += id
        round++
    }

    private fun put(
        id: String,
        request: RecordedRequest,
    ): MockResponse.Builder {
        updates[id] = request.body!!.toByteArray()
        round++
        return answer("""{"status": "accepted", "task": "$id", "received": ${updates.getValue(id).size}, "duplicate": false}""")
    }

    private fun federation() =
        """{"protocol": 1, "server": "fake", "bundle": $bundle, "enrolment": "open", "attestation": $attestation, "privacy": {},
            "groups": [], "max_update_bytes": 10000, "state": "running"}"""

    private val sets get() = """{"global": {"sha256": "$digest", "bytes": ${values.size}, "url": "/v1/sets/$digest"}}"""

    private fun checkIn(): String {
        if (round >= rounds) return """{"status": "done", "reason": "finished"}"""
        val id = task(round + 1)
        return """{"status": "task", "task": {"id": "$id", "round": ${round + 1}, "version": $round, "plan": $plan, "sets": $sets,
            "layout": $layout, "reports": $reports, "privacy": $privacy, "evaluate": true, "expires": 9e9,
            "expires_in_s": $expiresInS, "update_url": "/v1/tasks/$id/update"}}"""
    }

    private fun latest() = """{"version": $round, "round": $round, "sets": $sets, "privacy": {}, "created": 1.0}"""

    companion object {
        const val PLAN =
            """{"phases": [{"kind": "move", "group": ["role:shared"], "toward": "global", "rate": 1.0},
                {"kind": "train", "group": ["*"], "steps": 12, "optimizer": {"kind": "sgd", "lr": 0.3}}], "upload": ["role:shared"]}"""
        const val PRIVATE =
            """{"mechanism": "gaussian", "clip_norm": 0.05, "noise_multiplier": 1.0, "epsilon_after": 8.0, "statement":
                {"private": true, "epsilon": 7.0, "delta": 1e-6, "noise_multiplier": 1.0, "sampling": "none"}}"""
        const val LOCAL =
            """{"mechanism": "local", "clip_norm": 0.05, "noise_multiplier": 0.0, "local_noise_multiplier": 8.0, "statement": {}}"""
        const val NONE = """{"mechanism": "none", "clip_norm": null, "noise_multiplier": 0.0}"""
    }
}
