"""The device side in Python: the reference that the Kotlin and Swift kits repeat."""
