"""Who a device is: credentials and attestation."""
