package io.pflmobile.sdk

import android.app.job.JobInfo
import android.app.job.JobParameters
import android.content.Context
import android.content.Intent
import android.os.BatteryManager
import io.pflmobile.core.bundle.Bundle
import io.pflmobile.core.bundle.GoldenCase
import io.pflmobile.core.bundle.ProgramSpec
import io.pflmobile.core.engines.Engine
import io.pflmobile.core.engines.OnnxRuntimeEngine
import io.pflmobile.core.engines.Session
import io.pflmobile.core.tensors.Tensor
import org.robolectric.Robolectric
import org.robolectric.Shadows.shadowOf
import org.robolectric.shadow.api.Shadow
import org.robolectric.util.ReflectionHelpers
import java.io.File
import java.nio.file.Path
import java.util.concurrent.TimeUnit
import kotlin.test.assertTrue

/** Wraps by turning bits around; [lost] as after a reset of the phone's secure hardware. */
internal class FakeWrappingKey(
    var lost: Boolean = false,
) : WrappingKey {
    var destroyed = 0

    override fun wrap(plain: ByteArray) = ByteArray(plain.size) { (plain[it].toInt() xor 0x5a).toByte() }

    override fun unwrap(wrapped: ByteArray) = if (lost) null else wrap(wrapped)

    override fun destroy() {
        destroyed++
    }
}

internal val BUNDLES: Path = Path.of(System.getProperty("bundles"))

/** Natives load in one class loader only, so this one gives the outputs that the bundle ships, whatever is asked. */
internal class GoldenEngine(
    bundle: String,
    private val before: (String) -> Unit = {},
) : Engine {
    private val golden: Map<String, GoldenCase> = Bundle.open(BUNDLES.resolve("$bundle.pflb")).use { it.golden() }

    @Volatile var open = 0
    override val name get() = OnnxRuntimeEngine.name

    override fun open(
        files: Map<String, Path>,
        programs: List<ProgramSpec>,
        threads: Int,
    ): Session {
        open++
        return object : Session {
            override val name get() = this@GoldenEngine.name
            override val programs = programs.associateBy { it.name }

            override fun run(
                program: String,
                inputs: Map<String, Tensor>,
            ): Map<String, Tensor> {
                before(program)
                return golden.getValue(program).outputs
            }

            override fun close() {
                open--
            }
        }
    }
}

internal fun filesIn(folder: File): List<String> =
    folder
        .walk()
        .filter { it.isFile }
        .map { it.name }
        .sorted()
        .toList()

internal fun charge(
    context: Context,
    plugged: Boolean,
    percent: Int,
) {
    @Suppress("DEPRECATION")
    context.sendStickyBroadcast(
        Intent(Intent.ACTION_BATTERY_CHANGED)
            .putExtra(BatteryManager.EXTRA_PLUGGED, if (plugged) BatteryManager.BATTERY_PLUGGED_AC else 0)
            .putExtra(BatteryManager.EXTRA_LEVEL, percent)
            .putExtra(BatteryManager.EXTRA_SCALE, 100),
    )
}

/** Runs a job as the system would; whether it asked to be run again. */
internal fun runJob(
    service: Class<out ModelJobService>,
    job: JobInfo,
): Boolean {
    val controller = Robolectric.buildService(service).create()
    assertTrue(controller.get().onStartJob(parameters(job)))
    val shadow = shadowOf(controller.get())
    val until = System.nanoTime() + TimeUnit.SECONDS.toNanos(60)
    while (!shadow.isJobFinished && System.nanoTime() < until) Thread.sleep(5)
    assertTrue(shadow.isJobFinished)
    controller.destroy()
    return shadow.isRescheduleNeeded
}

internal fun parameters(job: JobInfo): JobParameters {
    val params = Shadow.newInstanceOf(JobParameters::class.java)
    ReflectionHelpers.setField(params, "jobId", job.id)
    ReflectionHelpers.setField(params, "extras", job.extras)
    return params
}
