"""Image sets: readers, one file a format; verified downloads; how pixels become what a network takes."""
