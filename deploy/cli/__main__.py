"""`python -m rollcall.deploy.cli` is `rollcall`."""

from rollcall.deploy.cli.main import console

console()
