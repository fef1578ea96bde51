package io.pflmobile.scenarios

import io.pflmobile.core.bundle.Bundle
import io.pflmobile.core.device.Backoff
import io.pflmobile.core.device.Client
import io.pflmobile.core.device.Device
import io.pflmobile.core.device.DeviceFolder
import io.pflmobile.core.device.Event
import io.pflmobile.core.device.Model
import io.pflmobile.core.device.PrivacyPolicy
import io.pflmobile.core.device.Summary
import io.pflmobile.core.engines.openSession
import io.pflmobile.core.local.Examples
import io.pflmobile.core.tensors.FloatTensor
import io.pflmobile.core.tensors.LongTensor
import java.util.Random
import kotlin.test.assertEquals
import kotlin.test.assertNotNull

private const val COUNT = 40
private const val WIDTH = 6
private const val LABELS = 4

/** Rows for the bundle `federated`: the label is the largest of the first four features. */
internal fun examples(seed: Long): Examples {
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

/** Takes part in the rounds of an aggregator until they are over; [onEvent] is told the name of each event. */
internal suspend fun takePart(
    place: Place,
    bundle: String,
    onEvent: (String) -> Unit,
): Summary {
    val url = assertNotNull(place.aggregator, "the scenario needs an aggregator")
    Bundle.open(place.bundle(bundle)).use { opened ->
        openSession(opened, listOf(place.engine), trusted = true).use { session ->
            val model = Model.open(opened, session)
            DeviceFolder(place.device, model.id).use { folder ->
                Client(url, Backoff(firstS = FIRST_S, mostS = MOST_S)).use { client ->
                    val device =
                        Device(model, examples(seed = 1), folder, client, PrivacyPolicy(), patienceS = PATIENCE_S) { onEvent(nameOf(it)) }
                    val summary = device.run()
                    assertEquals(0, folder.waiting, "nothing is left to send")
                    return summary
                }
            }
        }
    }
}

private fun nameOf(event: Event): String =
    when (event) {
        is Event.Finished -> "finished"
        is Event.Uploaded -> "uploaded"
        else -> ""
    }

private const val FIRST_S = 0.05
private const val MOST_S = 0.5
private const val PATIENCE_S = 60.0
