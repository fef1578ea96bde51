plugins {
    `java-library`
    alias(libs.plugins.kotlin.jvm)
    alias(libs.plugins.kotlin.serialization)
    alias(libs.plugins.dokka)
    `maven-publish`
}

kotlin {
    explicitApi()
    compilerOptions {
        jvmTarget.set(org.jetbrains.kotlin.gradle.dsl.JvmTarget.JVM_17)
        allWarningsAsErrors.set(true)
        progressiveMode.set(true)
    }
}

java {
    sourceCompatibility = JavaVersion.VERSION_17
    targetCompatibility = JavaVersion.VERSION_17
    withSourcesJar()
}

// one table for every language
val unicode =
    tasks.register<Copy>("unicode") {
        from("../../pfl_mobile/text/unicode.json")
        into(layout.buildDirectory.dir("unicode/io/pflmobile/core/text"))
    }

sourceSets.main {
    resources.srcDir(files(layout.buildDirectory.dir("unicode")).builtBy(unicode))
}

dependencies {
    api(libs.kotlin.stdlib)
    api(libs.kotlinx.coroutines.core)
    implementation(libs.kotlinx.serialization.json)
    // an app that pins a key makes the client itself
    api(libs.okhttp)
    implementation(libs.tink)
    compileOnly(libs.onnxruntime)
    compileOnly(libs.tokenizers)
    // classes only: the app's build has them with their natives
    compileOnly(libs.executorch.classes)
}

dokka {
    moduleName.set("pfl-mobile core")
    dokkaSourceSets.configureEach { reportUndocumented.set(true) }
}

publishing {
    publications.create<MavenPublication>("release") {
        from(components["java"])
        pom {
            name.set("pfl-mobile core")
            description.set(
                "What a phone does in on-device personalization and federated learning, without an Android type: bundles, text, plans, training, personal states, and a device of a federation.",
            )
        }
    }
}
