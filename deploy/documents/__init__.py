"""The documentation site: pages that are generated from the code, and what ties docs/ and the top level together."""
