"""`python -m rollcall.deploy.cli` is `rollcall`."""

from rollcall.deploy.cli import console

console()
