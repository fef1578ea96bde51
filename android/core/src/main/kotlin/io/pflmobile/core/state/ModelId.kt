package io.pflmobile.core.state

import io.pflmobile.core.bundle.DeviceTensor
import io.pflmobile.core.bundle.Manifest
import io.pflmobile.core.files.hex
import io.pflmobile.core.tensors.NameOrder
import java.security.MessageDigest

/**
 * Which model a personal state belongs to.
 *
 * @property name of the bundle
 * @property version of the bundle
 * @property fingerprint sha256 of the tensor table and of the frozen weights, see [of]
 */
public data class ModelId(
    val name: String,
    val version: String,
    val fingerprint: String,
) {
    /** Names models. */
    public companion object {
        /** The id of the bundle of a manifest. */
        public fun of(manifest: Manifest): ModelId = of(manifest.name, manifest.version, manifest.tensors, manifest.frozenSha256)

        /**
         * The id of a bundle: the fingerprint is over lines `name<TAB>role<TAB>update<TAB>dtype<TAB>2,3`, in order of name, each ended
         * by a newline, in UTF-8; then the manifest's [frozenSha256] where it has one, so that a state of other frozen weights is
         * refused even when the version was not raised.
         */
        public fun of(
            name: String,
            version: String,
            tensors: List<DeviceTensor>,
            frozenSha256: String? = null,
        ): ModelId {
            val lines =
                tensors.map { listOf(it.name, it.role.wireName, it.update.wireName, it.dtype.wireName, it.shape.joinToString(",")) }
            val text = lines.map { it.joinToString("\t", postfix = "\n") }.sortedWith(NameOrder).joinToString("") + frozenSha256.orEmpty()
            return ModelId(name, version, hex(MessageDigest.getInstance("SHA-256").digest(text.encodeToByteArray())))
        }
    }
}
