"""The audit: `refprune audit` proves SPEC again, claim by claim, and goes red where code or formula is wrong."""
