plugins {
    alias(libs.plugins.android.application)
}

android {
    namespace = "io.pflmobile.keyboard"
    compileSdk = 36

    defaultConfig {
        applicationId = "io.pflmobile.keyboard"
        minSdk = 26
        targetSdk = 34
        versionCode = 1
        versionName = version.toString()
        ndk { abiFilters += listOf("arm64-v8a", "x86_64") }
    }

    buildTypes {
        release {
            isMinifyEnabled = true
            isShrinkResources = true
            proguardFiles(getDefaultProguardFile("proguard-android-optimize.txt"))
        }
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
    implementation(project(":core"))
    implementation(project(":sdk"))
    implementation(libs.kotlin.stdlib)
    implementation(libs.kotlinx.coroutines.android)
    // the engine that the app brings
    runtimeOnly(libs.executorch.android)
}
