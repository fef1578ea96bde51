package io.pflmobile.core.errors

/**
 * Base of all errors that pfl-mobile raises on purpose; each names the thing that is wrong and the mend.
 *
 * @property message what is wrong, with the thing that is meant by name
 * @property mend what the app, its developer or its user can do about it
 * @property code stable identifier, the same in every language, for instance `TamperedBundleError`; a class name would not
 *   outlive the shrinking of an app
 */
public abstract class PflException(
    override val message: String,
    public val mend: String,
    cause: Throwable? = null,
    public val code: String,
) : Exception(message, cause) {
    /** Code, message and mend. */
    override fun toString(): String = "$code: $message\n  mend: $mend"
}

/** A setting, plan or argument is invalid. */
public open class ConfigException(
    message: String,
    mend: String,
    cause: Throwable? = null,
    code: String = "ConfigError",
) : PflException(message, mend, cause, code)

/** A name (layer pattern, recipe, engine, module kind, user) matches nothing. */
public class UnknownNameException(
    message: String,
    mend: String,
    cause: Throwable? = null,
) : ConfigException(message, mend, cause, "UnknownNameError")

/** A signing or verification key is missing or not an Ed25519 key. */
public class KeyFileException(
    message: String,
    mend: String,
    cause: Throwable? = null,
) : ConfigException(message, mend, cause, "KeyFileError")

/** A dataset or example is missing, damaged, or not what it claims to be. */
public open class DataException(
    message: String,
    mend: String,
    cause: Throwable? = null,
    code: String = "DataError",
) : PflException(message, mend, cause, code)

/** A dataset could not be obtained from its registry. */
public class NetworkException(
    message: String,
    mend: String,
    cause: Throwable? = null,
) : DataException(message, mend, cause, "NetworkError")

/** A token id lies outside the model's vocabulary. */
public class OutOfVocabularyException(
    message: String,
    mend: String,
    cause: Throwable? = null,
) : DataException(message, mend, cause, "OutOfVocabularyError")

/** A bundle cannot be used. */
public open class BundleException(
    message: String,
    mend: String,
    cause: Throwable? = null,
    code: String = "BundleError",
) : PflException(message, mend, cause, code)

/** A file that the manifest names is not there. */
public class MissingFileException(
    message: String,
    mend: String,
    cause: Throwable? = null,
) : BundleException(message, mend, cause, "MissingFileError")

/** A file is shorter or longer than the manifest says. */
public class TruncatedFileException(
    message: String,
    mend: String,
    cause: Throwable? = null,
) : BundleException(message, mend, cause, "TruncatedFileError")

/** A file's bytes are not those the manifest lists, or a file is there that it does not list. */
public class TamperedBundleException(
    message: String,
    mend: String,
    cause: Throwable? = null,
) : BundleException(message, mend, cause, "TamperedBundleError")

/** The path is neither the folder nor the zip of a bundle. */
public class NotABundleException(
    message: String,
    mend: String,
    cause: Throwable? = null,
) : BundleException(message, mend, cause, "NotABundleError")

/** A bundle, or a file in it, is larger than the reader accepts. */
public class BundleTooLargeException(
    message: String,
    mend: String,
    cause: Throwable? = null,
) : BundleException(message, mend, cause, "BundleTooLargeError")

/** The system refuses to read a file of the bundle. */
public class UnreadableFileException(
    message: String,
    mend: String,
    cause: Throwable? = null,
) : BundleException(message, mend, cause, "UnreadableFileError")

/** The manifest has a newer schema than this version reads. */
public class SchemaVersionException(
    message: String,
    mend: String,
    cause: Throwable? = null,
) : BundleException(message, mend, cause, "SchemaVersionError")

/** The manifest is not valid JSON or breaks its schema. */
public class InvalidManifestException(
    message: String,
    mend: String,
    cause: Throwable? = null,
) : BundleException(message, mend, cause, "InvalidManifestError")

/** The signature is missing, by another key, or does not match. */
public class SignatureException(
    message: String,
    mend: String,
    cause: Throwable? = null,
) : BundleException(message, mend, cause, "SignatureError")

/** A path in a bundle or archive would leave its folder. */
public class UnsafePathException(
    message: String,
    mend: String,
    cause: Throwable? = null,
) : BundleException(message, mend, cause, "UnsafePathError")

/** Bytes are not a valid safetensors file, or tensors cannot be stored in one. */
public open class TensorFileException(
    message: String,
    mend: String,
    cause: Throwable? = null,
    code: String = "TensorFileError",
) : PflException(message, mend, cause, code)

/** A file of a newer version of pfl-mobile. */
public class NewerFileException(
    message: String,
    mend: String,
    cause: Throwable? = null,
) : TensorFileException(message, mend, cause, "NewerFileError")

/** Bytes are not a canonical update file. */
public open class UpdateFileException(
    message: String,
    mend: String,
    cause: Throwable? = null,
    code: String = "UpdateFileError",
) : TensorFileException(message, mend, cause, code)

/** An update file holds other tensors than the task asks for. */
public class UpdateTensorsException(
    message: String,
    mend: String,
    cause: Throwable? = null,
) : UpdateFileException(message, mend, cause, "UpdateTensorsError")

/** A place on the disk cannot be written. */
public class UnwritableException(
    message: String,
    mend: String,
    cause: Throwable? = null,
) : PflException(message, mend, cause, "UnwritableError")

/** An engine failed to load or run a program. */
public open class EngineException(
    message: String,
    mend: String,
    cause: Throwable? = null,
    code: String = "EngineError",
) : PflException(message, mend, cause, code)

/** The engine's runtime is not installed, or the bundle has no programs for it. */
public class EngineUnavailableException(
    message: String,
    mend: String,
    cause: Throwable? = null,
) : EngineException(message, mend, cause, "EngineUnavailableError")

/** A program that nobody vouches for ended the process it was tried in, or used more than it was given. */
public class ProgramDiedException(
    message: String,
    mend: String,
    cause: Throwable? = null,
) : EngineException(message, mend, cause, "ProgramDiedError")

/** The golden batch gives other numbers here than in PyTorch. */
public class EngineMismatchException(
    message: String,
    mend: String,
    cause: Throwable? = null,
) : EngineException(message, mend, cause, "EngineMismatchError")

/** A tensor has the wrong name, shape or dtype. */
public class TensorMismatchException(
    message: String,
    mend: String,
    cause: Throwable? = null,
) : EngineException(message, mend, cause, "TensorMismatchError")

/** Local training could not go on; the state before it is kept. */
public open class TrainingException(
    message: String,
    mend: String,
    cause: Throwable? = null,
    code: String = "TrainingError",
) : PflException(message, mend, cause, code)

/** A loss, gradient or tensor is NaN or infinite. */
public class NonFiniteException(
    message: String,
    mend: String,
    cause: Throwable? = null,
) : TrainingException(message, mend, cause, "NonFiniteError")

/** A plan makes more steps on these examples than the bundle allows on a device. */
public class TooManyStepsException(
    message: String,
    mend: String,
    cause: Throwable? = null,
) : TrainingException(message, mend, cause, "TooManyStepsError")

/** Training took longer than the bundle allows on a device. */
public class TooSlowException(
    message: String,
    mend: String,
    cause: Throwable? = null,
) : TrainingException(message, mend, cause, "TooSlowError")

/** There is nothing to train on or to evaluate with. */
public class NoExamplesException(
    message: String,
    mend: String,
    cause: Throwable? = null,
) : TrainingException(message, mend, cause, "NoExamplesError")

/** So many users failed that there is nothing to tell of the others. */
public class TrainingFailedException(
    message: String,
    mend: String,
    cause: Throwable? = null,
) : TrainingException(message, mend, cause, "TrainingFailedError")

/** A saved personal state is damaged or belongs to another model. */
public open class StateException(
    message: String,
    mend: String,
    cause: Throwable? = null,
    code: String = "StateError",
) : PflException(message, mend, cause, code)

/** The disk is full; the last good state is kept. */
public class StorageFullException(
    message: String,
    mend: String,
    cause: Throwable? = null,
) : StateException(message, mend, cause, "StorageFullError")

/** Something would read more of single updates than the private merge lets out. */
public class PrivacyException(
    message: String,
    mend: String,
    cause: Throwable? = null,
) : PflException(message, mend, cause, "PrivacyError")

/** One more round would spend more privacy than the budget allows; training ends here. */
public class PrivacyBudgetException(
    message: String,
    mend: String,
    cause: Throwable? = null,
) : PflException(message, mend, cause, "PrivacyBudgetError")

/** A device cannot take part in a federation, or no longer. */
public open class DeviceException(
    message: String,
    mend: String,
    cause: Throwable? = null,
    code: String = "DeviceError",
) : PflException(message, mend, cause, code)

/** A device's folder is in use, damaged, or belongs to another federation or model. */
public class DeviceFolderException internal constructor(
    message: String,
    mend: String,
    cause: Throwable?,
    /** Whether what lies there can never be used again; another time may help otherwise. */
    internal val damaged: Boolean,
) : DeviceException(message, mend, cause, "DeviceFolderError") {
    public constructor(message: String, mend: String, cause: Throwable? = null) : this(message, mend, cause, false)
}

/**
 * The aggregator could not be reached, or the connection broke; trying again may help.
 *
 * @property retryAfterS seconds after which what answered in its place asks to try again; null where it does not say
 */
public class UnreachableException(
    message: String,
    mend: String,
    cause: Throwable? = null,
    public val retryAfterS: Double? = null,
) : DeviceException(message, mend, cause, "UnreachableError")

/**
 * A problem that the aggregator answered with (RFC 9457); [code] is the problem's own, for instance `round-closed`.
 *
 * @property status of the answer
 * @property retryAfterS seconds after which the aggregator asks to try again; null where it does not say
 */
public class ServerProblemException(
    code: String,
    public val status: Int,
    message: String,
    mend: String,
    public val retryAfterS: Double? = null,
) : DeviceException(message, mend, null, code) {
    /** Whether the same request may work later. */
    public val passing: Boolean get() = status in PASSING

    internal companion object {
        /** Statuses of problems after which the same request may work later. */
        val PASSING = setOf(408, 425, 429, 500, 502, 503, 504)
    }
}

/** What answers at the address is not the aggregator: waiting does not mend that, another network may. */
public open class NotTheAggregatorException(
    message: String,
    mend: String,
    cause: Throwable? = null,
    code: String = "NotTheAggregatorError",
) : DeviceException(message, mend, cause, code)

/** The certificate of what answers does not show that it is the aggregator. */
public class CertificateException(
    message: String,
    mend: String,
    cause: Throwable? = null,
) : NotTheAggregatorException(message, mend, cause, "CertificateError")

/** No connection that TLS protects could be agreed on, or one side speaks TLS and the other does not. */
public class TlsException(
    message: String,
    mend: String,
    cause: Throwable? = null,
) : NotTheAggregatorException(message, mend, cause, "TlsError")

/** The address sends its visitors to another one; a device follows nowhere. */
public class RedirectedException(
    message: String,
    mend: String,
    cause: Throwable? = null,
) : NotTheAggregatorException(message, mend, cause, "RedirectedError")

/** Something between the device and the aggregator refuses bodies of this size. */
public class TooLargeOnTheWayException(
    message: String,
    mend: String,
    cause: Throwable? = null,
) : DeviceException(message, mend, cause, "TooLargeOnTheWayError")

/** The aggregator's answer is not one of the protocol. */
public open class ProtocolException(
    message: String,
    mend: String,
    cause: Throwable? = null,
    code: String = "ProtocolError",
) : DeviceException(message, mend, cause, code)

/** The aggregator speaks another version of the protocol. */
public class OtherProtocolException(
    message: String,
    mend: String,
    cause: Throwable? = null,
) : ProtocolException(message, mend, cause, "OtherProtocolError")
