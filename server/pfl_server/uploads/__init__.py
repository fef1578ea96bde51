"""An upload: received, stored, accepted, merged, published."""
