"""Checks of Kubernetes manifests: `rollcall manifests`."""
