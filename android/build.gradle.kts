// Makes the AAR and the app for phones. Maven, over the same folders, tests what runs on a JVM; tests/android/test_gradle.py
// compares the two.
plugins {
    alias(libs.plugins.kotlin.jvm) apply false
    alias(libs.plugins.kotlin.serialization) apply false
    alias(libs.plugins.dokka) apply false
    alias(libs.plugins.android.library) apply false
    alias(libs.plugins.android.application) apply false
}

allprojects {
    group = "io.pflmobile"
    version = "0.1.0"
}
