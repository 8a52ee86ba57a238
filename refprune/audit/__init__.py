"""The audit: `refprune audit` proves SPEC again, claim by claim, and goes red where code or formula is wrong.

For others:

- `run`: asks the witnesses of all claims, or of some.
- `catalogue`: the claims.
- `page`: the findings as one HTML page.
"""
