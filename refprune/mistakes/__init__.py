"""The catalogue of wrong formulas: how a mistake is planted, and every mistake that verify and the audit know."""
