pluginManagement {
    repositories {
        google()
        mavenCentral()
        gradlePluginPortal()
    }
}

dependencyResolutionManagement {
    repositoriesMode.set(RepositoriesMode.FAIL_ON_PROJECT_REPOS)
    repositories {
        google()
        mavenCentral()
        // of ExecuTorch the classes alone; python desktop.py puts them there
        maven(uri("target/repository")) {
            content { includeModule("org.pytorch", "executorch-classes") }
        }
    }
}

rootProject.name = "pfl-mobile"

include(":core", ":sdk", ":keyboard", ":e2e")
