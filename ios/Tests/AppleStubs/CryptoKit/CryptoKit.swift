// A stand-in for tests, not Apple's framework: see the README beside it. swift-crypto has CryptoKit's API.
@_exported import Crypto
