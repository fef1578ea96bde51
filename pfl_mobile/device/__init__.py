"""A device: takes part in federated rounds. The reference for the Kotlin and Swift clients."""
