"""Signed manifests in image files: that they were generated, by what, and by whose server (C2PA)."""
