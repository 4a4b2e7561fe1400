"""What a run books: the ledger of tickets, the consumption log, and the audit that compares them."""
