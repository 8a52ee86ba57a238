"""Examples with their right answers as files, for any language."""
