plugins {
    alias(libs.plugins.android.library)
}

// The library is empty: its tests are an app of their own, which ../emulator.py installs and runs.
android {
    namespace = "io.pflmobile.e2e"
    compileSdk = 36

    defaultConfig {
        minSdk = 26
        testInstrumentationRunner = "androidx.test.runner.AndroidJUnitRunner"
    }

    sourceSets.named("androidTest") {
        // src/androidTest/kotlin, and what the tests of the JVM have too
        kotlin.srcDirs("src/scenarios/kotlin", "src/keys/kotlin")
        // instrumented.py puts scenarios and bundles there
        assets.srcDirs("../target/e2e/assets")
    }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
}

kotlin {
    explicitApi()
    compilerOptions {
        jvmTarget.set(org.jetbrains.kotlin.gradle.dsl.JvmTarget.JVM_17)
        allWarningsAsErrors.set(true)
        progressiveMode.set(true)
    }
}

dependencies {
    androidTestImplementation(project(":core"))
    androidTestImplementation(project(":sdk"))
    androidTestImplementation(libs.kotlin.stdlib)
    androidTestImplementation(libs.kotlin.test)
    androidTestImplementation(libs.kotlinx.coroutines.core)
    androidTestImplementation(libs.kotlinx.serialization.json)
    androidTestImplementation(libs.junit4)
    androidTestImplementation(libs.androidx.test.runner)
    androidTestImplementation(libs.androidx.test.monitor)
    androidTestImplementation(libs.androidx.test.uiautomator)
    // the engine that the tests bring
    androidTestRuntimeOnly(libs.executorch.android)
}
