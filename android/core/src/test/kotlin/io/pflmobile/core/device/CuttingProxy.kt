package io.pflmobile.core.device

import java.io.IOException
import java.net.InetAddress
import java.net.ServerSocket
import java.net.Socket
import java.util.concurrent.ConcurrentHashMap
import kotlin.concurrent.thread

/**
 * A network between a device and its aggregator: the first upload that comes through it is cut off after [keep] bytes, and from then on
 * nothing passes until [open].
 */
class CuttingProxy(
    private val port: Int,
    private val keep: Int,
) : AutoCloseable {
    private val home = InetAddress.getByName("127.0.0.1")
    private val socket = ServerSocket(0, 50, home)
    private val sockets: MutableSet<Socket> = ConcurrentHashMap.newKeySet()

    @Volatile
    private var armed = true

    @Volatile
    private var shut = false

    val address = "http://127.0.0.1:${socket.localPort}"

    init {
        thread(isDaemon = true) {
            quietly {
                while (true) {
                    val one = socket.accept()
                    // a connection that cannot be made ends alone
                    quietly { if (shut) one.close() else connect(one) }
                }
            }
        }
    }

    /** Whether an upload was cut off. */
    val cut: Boolean get() = !armed

    fun open() {
        shut = false
    }

    private fun connect(device: Socket) {
        val server =
            try {
                Socket(home, port)
            } catch (error: IOException) {
                device.close()
                throw error
            }
        val both = listOf(device, server)
        sockets += both
        thread(isDaemon = true) { copy(device, server, both, up = true) }
        thread(isDaemon = true) { copy(server, device, both, up = false) }
    }

    private fun copy(
        from: Socket,
        to: Socket,
        both: List<Socket>,
        up: Boolean,
    ) {
        quietly {
            val buffer = ByteArray(1 shl 16)
            while (true) {
                val count = from.getInputStream().read(buffer)
                if (count < 0) break
                if (up && armed && String(buffer, 0, count, Charsets.ISO_8859_1).startsWith("PUT ")) {
                    shut = true
                    armed = false
                    to.getOutputStream().write(buffer, 0, minOf(count, keep))
                    to.getOutputStream().flush()
                    break
                }
                to.getOutputStream().write(buffer, 0, count)
            }
        }
        both.forEach { it.close() }
        sockets -= both.toSet()
    }

    private inline fun quietly(work: () -> Unit) {
        try {
            work()
        } catch (_: IOException) {
            return // one side ended
        }
    }

    override fun close() {
        socket.close()
        sockets.forEach { it.close() }
    }
}
