package io.pflmobile.sdk

import android.app.job.JobInfo
import android.app.job.JobParameters
import android.content.Context
import android.content.Intent
import android.os.BatteryManager
import android.security.keystore.KeyGenParameterSpec
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
import java.io.InputStream
import java.io.OutputStream
import java.nio.file.Path
import java.security.Key
import java.security.KeyStoreSpi
import java.security.Provider
import java.security.SecureRandom
import java.security.Security
import java.security.cert.Certificate
import java.security.spec.AlgorithmParameterSpec
import java.util.Collections
import java.util.Date
import java.util.Enumeration
import java.util.concurrent.TimeUnit
import javax.crypto.KeyGenerator
import javax.crypto.KeyGeneratorSpi
import javax.crypto.SecretKey
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

/** The provider that a JVM lacks. */
class FakeAndroidKeyStore : Provider("AndroidKeyStore", "1", "for tests") {
    init {
        put("KeyStore.AndroidKeyStore", Store::class.java.name)
        put("KeyGenerator.AES", Maker::class.java.name)
    }

    class Store : KeyStoreSpi() {
        override fun engineGetKey(
            alias: String,
            password: CharArray?,
        ): Key? = KEYS[alias]

        override fun engineDeleteEntry(alias: String) {
            KEYS.remove(alias)
        }

        override fun engineContainsAlias(alias: String) = alias in KEYS

        override fun engineAliases(): Enumeration<String> = Collections.enumeration(KEYS.keys)

        override fun engineSize() = KEYS.size

        override fun engineIsKeyEntry(alias: String) = alias in KEYS

        override fun engineIsCertificateEntry(alias: String) = false

        override fun engineGetCertificate(alias: String) = null

        override fun engineGetCertificateChain(alias: String) = null

        override fun engineGetCertificateAlias(certificate: Certificate?) = null

        override fun engineGetCreationDate(alias: String): Date? = null

        override fun engineSetKeyEntry(
            alias: String,
            key: Key,
            password: CharArray?,
            chain: Array<out Certificate>?,
        ): Unit = throw UnsupportedOperationException()

        override fun engineSetKeyEntry(
            alias: String,
            key: ByteArray,
            chain: Array<out Certificate>?,
        ): Unit = throw UnsupportedOperationException()

        override fun engineSetCertificateEntry(
            alias: String,
            certificate: Certificate?,
        ): Unit = throw UnsupportedOperationException()

        override fun engineStore(
            stream: OutputStream?,
            password: CharArray?,
        ) = Unit

        override fun engineLoad(
            stream: InputStream?,
            password: CharArray?,
        ) = Unit
    }

    class Maker : KeyGeneratorSpi() {
        private var alias = ""

        override fun engineInit(random: SecureRandom?) = Unit

        override fun engineInit(
            params: AlgorithmParameterSpec,
            random: SecureRandom?,
        ) {
            alias = (params as KeyGenParameterSpec).keystoreAlias
        }

        override fun engineInit(
            size: Int,
            random: SecureRandom?,
        ) = Unit

        override fun engineGenerateKey(): SecretKey = KeyGenerator.getInstance("AES", "SunJCE").generateKey().also { KEYS[alias] = it }
    }

    companion object {
        val KEYS = HashMap<String, SecretKey>()

        fun install() {
            KEYS.clear()
            if (Security.getProvider("AndroidKeyStore") == null) Security.addProvider(FakeAndroidKeyStore())
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
