"""Not filled yet: see docs/architecture.md."""
