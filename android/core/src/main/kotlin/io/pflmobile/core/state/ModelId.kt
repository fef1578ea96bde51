package io.pflmobile.core.state

import io.pflmobile.core.bundle.Manifest
import io.pflmobile.core.files.hex
import io.pflmobile.core.tensors.NameOrder
import java.security.MessageDigest

/**
 * Which model a state belongs to.
 *
 * @property name of the bundle
 * @property version of the bundle
 * @property fingerprint sha256 of the tensor table and of the frozen weights in hex, see [of]
 */
public data class ModelId(
    val name: String,
    val version: String,
    val fingerprint: String,
) {
    public companion object {
        /**
         * The id of a bundle. The fingerprint is over lines `name<TAB>role<TAB>update<TAB>dtype<TAB>2,3`, in order of name, each ended by
         * a newline, in UTF-8; then the manifest's `frozen_sha256` where it has one, so that a state of other frozen weights is refused
         * even when the version was not raised.
         */
        public fun of(manifest: Manifest): ModelId {
            val lines =
                manifest.tensors.map { listOf(it.name, it.role, it.update, it.dtype.wireName, it.shape.joinToString(",")).joinToString("\t") + "\n" }
            val text = lines.sortedWith(NameOrder).joinToString("") + manifest.frozenSha256.orEmpty()
            val sha = MessageDigest.getInstance("SHA-256").digest(text.encodeToByteArray())
            return ModelId(manifest.name, manifest.version, hex(sha))
        }
    }
}
