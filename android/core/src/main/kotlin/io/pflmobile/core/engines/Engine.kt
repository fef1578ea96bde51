package io.pflmobile.core.engines

import io.pflmobile.core.bundle.Bundle
import io.pflmobile.core.bundle.Manifest
import io.pflmobile.core.bundle.ProgramSpec
import io.pflmobile.core.bundle.RuntimeEntry
import io.pflmobile.core.bundle.Versions
import io.pflmobile.core.errors.EngineException
import io.pflmobile.core.errors.EngineUnavailableException
import io.pflmobile.core.errors.PflException
import io.pflmobile.core.errors.SignatureException
import io.pflmobile.core.errors.TensorMismatchException
import io.pflmobile.core.errors.UnknownNameException
import io.pflmobile.core.errors.near
import io.pflmobile.core.tensors.Tensor
import java.io.Closeable
import java.nio.file.Path

/** A runtime of programs. */
public interface Engine {
    /** As bundles write it, for instance `executorch`. */
    public val name: String

    /**
     * Version of the runtime that the app brings, for instance `1.29.0`; null where the runtime does not tell.
     *
     * @throws EngineUnavailableException the runtime is not in the app
     */
    public val version: String? get() = null

    /**
     * Loads programs, at the latest when they are first run. What a schedule makes of them ([openSession]) is not its concern.
     *
     * @param files by purpose, as [Bundle.engineFiles] gives them
     * @param programs their signatures
     * @param threads threads of the runtime, where it can be told
     * @throws EngineUnavailableException the runtime is not in the app
     * @throws EngineException the runtime refuses a program
     */
    public fun open(
        files: Map<String, Path>,
        programs: List<ProgramSpec>,
        threads: Int = 1,
    ): Session
}

/**
 * A loaded set of programs: tensors by name in, tensors by name out. A call blocks until its program is done, and is not interrupted:
 * whoever cancels waits for one call. Calls from several threads are done one after the other.
 */
public interface Session : Closeable {
    /** The engine's name. */
    public val name: String

    /** Signatures of the programs by name. */
    public val programs: Map<String, ProgramSpec>

    /**
     * Runs [program].
     *
     * @param inputs by name; what the program does not take is left out. Training changes their arrays after the call
     * @return outputs by name, which are the caller's to keep
     * @throws UnknownNameException there is no such program
     * @throws TensorMismatchException inputs or outputs are not as the signature says
     * @throws EngineException the runtime failed, or the session is closed
     */
    public fun run(
        program: String,
        inputs: Map<String, Tensor>,
    ): Map<String, Tensor>

    /** Frees the runtime's memory; the session cannot be used afterwards. */
    override fun close()
}

/**
 * Loads the programs of a bundle into the first of [engines] that it has programs for and that the app brings, new enough.
 *
 * A runtime trusts the programs it loads, and a damaged one can end the process. So someone must vouch for them: the bundle was opened
 * with a pinned key, or the caller knows where it came from.
 *
 * @param bundle stays open as long as the session
 * @param trusted you know who made the bundle, for instance because it came with the app
 * @param threads threads of the runtime, where it can be told
 * @throws EngineUnavailableException the bundle has programs for none of them, or the runtime is not in the app or older than the
 *   programs need
 * @throws SignatureException nobody vouches for the programs
 * @throws io.pflmobile.core.errors.InvalidManifestException their schedule is damaged, or not of this bundle
 * @throws EngineException the runtime refuses a program
 */
public fun openSession(
    bundle: Bundle,
    engines: List<Engine>,
    trusted: Boolean = false,
    threads: Int = 1,
): Session {
    val engine = chosen(bundle.manifest, engines)
    if (!bundle.pinned && !trusted) {
        throw SignatureException(
            "nobody vouches for the programs of bundle '${bundle.manifest.name}', and a damaged program can end the app",
            "pin the key it was signed with, or say trusted if it came with the app",
        )
    }
    val needs = bundle.manifest.engine(engine.name).runtime
    return try {
        scheduled(engine, bundle.engineFiles(engine.name), bundle.manifest.programs, threads)
    } catch (error: EngineUnavailableException) {
        throw error
    } catch (error: EngineException) {
        // A runtime that does not tell its version may be too old.
        if (needs == null || engine.version != null) throw error
        throw EngineException("${error.message} (it needs ${engine.name} ${needs.atLeast} or later)", wayOut(engine, needs), error)
    }
}

/**
 * The first of [engines] that the bundle has programs for and that the app brings, new enough.
 *
 * @throws EngineUnavailableException there is none; why the first that the bundle has programs for cannot be it
 */
internal fun chosen(
    manifest: Manifest,
    engines: List<Engine>,
): Engine {
    var why: EngineUnavailableException? = null
    for (engine in engines.filter { it.name in manifest.engines }) {
        try {
            checkVersion(manifest, engine)
            return engine
        } catch (error: EngineUnavailableException) {
            if (why == null) why = error
        }
    }
    throw why ?: EngineUnavailableException(
        "bundle '${manifest.name}' has programs for ${manifest.engines.keys.joinToString()} only, " +
            "the app for ${engines.joinToString { it.name }}",
        "export the model for one of the app's engines too, or put the engine into the app",
    )
}

private fun checkVersion(
    manifest: Manifest,
    engine: Engine,
) {
    val version = engine.version
    val needs = manifest.engine(engine.name).runtime
    if (needs != null && version != null && Versions.isOlder(version, needs.atLeast)) {
        throw EngineUnavailableException(
            "bundle '${manifest.name}' needs ${engine.name} ${needs.atLeast} or later (it was verified with ${needs.verified}), " +
                "the app has $version",
            wayOut(engine, needs),
        )
    }
}

private fun wayOut(
    engine: Engine,
    needs: RuntimeEntry,
) = "put ${engine.name} ${needs.verified} into the app, or export the model with the version that the app has"

/**
 * What [open] gives, which is the first to need the classes of a runtime.
 *
 * @throws EngineUnavailableException the app does not bring it
 */
internal inline fun <T> broughtByTheApp(
    runtime: String,
    dependency: String,
    open: () -> T,
): T =
    try {
        open()
    } catch (error: LinkageError) {
        throw EngineUnavailableException("$runtime is not in the app: ${error.message} is missing", "add the dependency $dependency", error)
    }

/** Common part of all engines: look up, check, run, check again. */
internal abstract class EngineSession(
    final override val name: String,
    programs: List<ProgramSpec>,
) : Session {
    final override val programs: Map<String, ProgramSpec> = programs.associateBy { it.name }
    private var closed = false

    /** Runs a program on checked inputs in its order; outputs in its order are no longer the runtime's. */
    protected abstract fun execute(
        program: ProgramSpec,
        inputs: List<Tensor>,
    ): List<Tensor>

    /** Frees everything; called once. */
    protected abstract fun free()

    @Synchronized
    final override fun run(
        program: String,
        inputs: Map<String, Tensor>,
    ): Map<String, Tensor> {
        if (closed) throw EngineException("the session of engine '$name' is closed", "open another one")
        val spec = programs[program] ?: throw UnknownNameException("there is no program '$program'", near(program, programs.keys))
        val ordered = checkInputs(spec, inputs)
        val values =
            try {
                execute(spec, ordered)
            } catch (error: PflException) {
                throw error
            } catch (
                // The exceptions of the runtimes share no base.
                @Suppress("TooGenericExceptionCaught") error: Exception,
            ) {
                throw EngineException(
                    "engine '$name' failed in program '$program': ${error.message ?: error.javaClass.simpleName}",
                    "run `pfl verify` on the bundle; if it fails too, export it again",
                    error,
                )
            }
        return checkOutputs(spec, values)
    }

    @Synchronized
    final override fun close() {
        if (closed) return
        closed = true
        free()
    }
}

/**
 * The inputs in the order of the signature. Tensors that the program does not take are left out.
 *
 * @throws TensorMismatchException an input is missing, or has another shape or dtype
 */
internal fun checkInputs(
    spec: ProgramSpec,
    inputs: Map<String, Tensor>,
): List<Tensor> =
    spec.inputs.map { want ->
        val given =
            inputs[want.name]
                ?: throw TensorMismatchException("program '${spec.name}' needs the input '${want.name}'", near(want.name, inputs.keys))
        if (given.dtype != want.dtype || given.shape != want.shape) {
            throw TensorMismatchException(
                "input '${want.name}' of '${spec.name}' is ${given.signature}, the program takes ${want.signature}",
                "pad or split the batch to the shape that the bundle was exported with",
            )
        }
        given
    }

internal fun checkOutputs(
    spec: ProgramSpec,
    values: List<Tensor>,
): Map<String, Tensor> {
    if (values.size != spec.outputs.size) {
        throw TensorMismatchException(
            "program '${spec.name}' gave ${values.size} outputs, the manifest lists ${spec.outputs.size}",
            EXPORT_AGAIN,
        )
    }
    return spec.outputs.zip(values).associate { (want, value) ->
        if (value.dtype != want.dtype || value.shape != want.shape) {
            throw TensorMismatchException(
                "output '${want.name}' of '${spec.name}' is ${value.signature}, the manifest says ${want.signature}",
                EXPORT_AGAIN,
            )
        }
        want.name to value
    }
}

/**
 * The file that an engine loads for [purpose].
 *
 * @throws EngineException the bundle has none
 */
internal fun fileFor(
    files: Map<String, Path>,
    purpose: String,
): Path =
    files[purpose] ?: throw EngineException(
        "the bundle has no file for '$purpose' of this engine; it has one for ${files.keys.sorted()}",
        EXPORT_AGAIN,
    )

internal const val EXPORT_AGAIN: String = "export the bundle again"
