plugins {
    alias(libs.plugins.android.library)
    alias(libs.plugins.dokka)
    `maven-publish`
}

android {
    namespace = "io.pflmobile.sdk"
    compileSdk = 36

    defaultConfig {
        minSdk = 26
        consumerProguardFiles("consumer-rules.pro")
    }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }

    publishing {
        singleVariant("release") { withSourcesJar() }
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
    api(project(":core"))
    implementation(libs.kotlin.stdlib)
    implementation(libs.kotlinx.coroutines.core)
    // an app brings one of them
    compileOnly(libs.executorch.android)
    compileOnly(libs.onnxruntime.android)
}

dokka {
    moduleName.set("pfl-mobile sdk")
    dokkaSourceSets.configureEach { reportUndocumented.set(true) }
}

publishing {
    publications.register<MavenPublication>("release") {
        artifactId = "sdk"
        afterEvaluate { from(components["release"]) }
        pom {
            name.set("pfl-mobile sdk")
            description.set("On-device personalization and federated learning for Android apps: storage, keys and jobs around the core.")
        }
    }
}
