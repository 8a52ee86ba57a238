"""The catalogue of wrong formulas: how a mistake is planted, and every mistake that verify and the audit know.

For others:

- `catalogue`: all mistakes.
- `planting`: a mistake put in force for a block of code.
"""
