"""From what an implementation answers to a verdict, a first difference and a known mistake."""
