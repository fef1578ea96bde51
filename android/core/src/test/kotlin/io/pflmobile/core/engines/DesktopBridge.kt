package io.pflmobile.core.engines

import com.facebook.soloader.nativeloader.NativeLoader
import com.facebook.soloader.nativeloader.NativeLoaderDelegate

/** For tests only: stands where `libexecutorch.so` and `libfbjni.so` stand on a phone, see `src/test/cpp/bridge.cpp`. */
internal object DesktopBridge : NativeLoaderDelegate {
    /** Whether it was compiled, as `make android` does. */
    val there: Boolean get() = System.getProperty("bridge").orEmpty().isNotEmpty()

    fun load() {
        NativeLoader.initIfUninitialized(this)
        // Now, and not with the first module: a test may ask for their number before.
        if (there) NativeLoader.loadLibrary("executorch")
    }

    /** Modules that are not closed. */
    @JvmStatic
    external fun modules(): Long

    override fun loadLibrary(
        shortName: String,
        flags: Int,
    ): Boolean {
        if (shortName == "executorch") System.load(System.getProperty("bridge"))
        return true
    }

    override fun getLibraryPath(libName: String): String? = null

    override fun getSoSourcesVersion(): Int = 0
}
