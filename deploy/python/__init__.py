"""What `import rollcall` offers: runs begun, gone on with and asked from a program or a notebook."""
