package io.pflmobile.core.device

import io.pflmobile.core.bundle.Bundle
import io.pflmobile.core.engines.OnnxRuntimeEngine
import io.pflmobile.core.engines.openSession
import io.pflmobile.core.local.Examples
import io.pflmobile.core.tensors.FloatTensor
import io.pflmobile.core.tensors.LongTensor
import kotlinx.coroutines.runBlocking
import org.junit.jupiter.api.Assumptions.assumeTrue
import org.junit.jupiter.api.Timeout
import java.nio.file.Path
import java.util.Random
import kotlin.test.Test
import kotlin.test.assertEquals

/** The device of Kotlin in the rounds of `ios/rounds.py`, which has those of Swift and Python take part in them too. */
@Timeout(180)
class RoundOfThreeTest {
    @Test
    fun `a device takes part in the federation that it is told of`() {
        val server = System.getProperty("federation")
        assumeTrue(server != null, "ios/rounds.py starts the federation")
        val policy = PrivacyPolicy(require = System.getProperty("federation.private") != "false")
        Bundle.open(Path.of(System.getProperty("bundles")).resolve("federated.pflb")).use { bundle ->
            openSession(bundle, listOf(OnnxRuntimeEngine), trusted = true).use { session ->
                val model = Model.open(bundle, session)
                DeviceFolder(Path.of(System.getProperty("federation.folder")), model.id).use { folder ->
                    Client(server, Backoff(firstS = 0.05, mostS = 0.5), timeoutS = 20.0).use { client ->
                        val device = Device(model, largestOfFour(3), folder, client, policy, patienceS = 60.0)
                        val summary = runBlocking { device.run() }
                        assertEquals(Ended.DONE, summary.ended)
                        assertEquals(listOf(2, 0, 0), listOf(summary.rounds, summary.dropped, summary.declined.size))
                        assertEquals(0, folder.waiting)
                    }
                }
            }
        }
    }
}

private const val COUNT = 40
private const val WIDTH = 6
private const val LABELS = 4

/** Examples for `federated.pflb`: the label is the largest of the first four features. */
internal fun largestOfFour(seed: Long): Examples {
    val random = Random(seed)
    val x = FloatArray(COUNT * WIDTH) { random.nextGaussian().toFloat() }
    val labels = LongArray(COUNT) { row -> (0 until LABELS).maxBy { x[row * WIDTH + it] }.toLong() }
    return Examples.Arrays(
        mapOf(
            "x" to FloatTensor(x, listOf(COUNT, WIDTH)),
            "labels" to LongTensor(labels, listOf(COUNT)),
            "weight" to FloatTensor(FloatArray(COUNT) { 1f }, listOf(COUNT)),
        ),
    )
}
