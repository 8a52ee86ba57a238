"""Image sets: readers, one file a format; verified downloads; how pixels become what a network takes.

For others:

- `dataset`: the record of an image set.
- `sets`: an image set by name, and the folder where sets are looked for.
- `fetch`: downloads, checked by SHA-256.
- `standardise`: pixels to inputs.
"""
