"""Networks as frozen, JSON-able data: layers, sections, gates; what they compute and what they cost. No arrays."""
