"""`refprune verify`: is an implementation right, where does it first differ, and which known mistake is that?

For others:

- `campaign`: one implementation judged method by method.
- `reporting`: the verdicts as text, HTML, JSON and JUnit.
- `testing`: the same inside one's own test suite.
- `strategies`: Hypothesis strategies of layers and networks.
- `vectors`: examples with their right answers as files.
"""
