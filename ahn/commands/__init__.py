"""The commands of `ahn`, one file each."""
